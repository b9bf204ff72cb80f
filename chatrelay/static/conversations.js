/**
 * The conversations that this tab knows: who wrote what to whom.
 *
 * Version 1 of the protocol has no history, so a tab cannot ask for messages that it has not seen. A reload must not lose
 * the conversations: they are kept in the tab's sessionStorage, under the uID of the user. Nothing here knows the
 * document or the connection.
 */

/** @import { Message, UserID } from "./chatrelay.js" */

/**
 * A user, as the website presents them; `tone` is the number of their colour.
 * @typedef {{ uID: UserID, name: string, tone: number }} Person
 */

/** The colour of people whom the website has not named. */
const STRANGER = 5;

/**
 * One message on the page.
 *
 * The `status` of one's own message is `waiting` (sent when connected, or in a moment if the `reason` is "rate-limited";
 * the page itself gives the `reason` "logged-out"), `kept` (was waiting when the page was left; sent when its writer says
 * so), `sending`, `delivered`, `refused` (with the relay's `reason`) or `unknown` (no answer came). That of another's
 * message is `received`.
 *
 * `at` is a time of this machine for both sides, because the timeStamp comes from the sender's clock and version 1
 * delivers at once or not at all.
 *
 * @typedef {object} Line
 * @property {string} content
 * @property {number} at  ms
 * @property {"waiting" | "kept" | "sending" | "delivered" | "refused" | "unknown" | "received"} status
 * @property {string} [reason]
 * @property {number} [timeStamp]  as last sent
 */

/** @typedef {{ person: Person, lines: Line[], unread: number, draft: string }} Conversation */

/** `7` and `"7"` are the same user. @param {UserID} uID */
export const keyOf = (uID) => String(uID);

/** How many lines of a conversation are kept. */
const MAX_LINES = 500;

/** How many lines of a conversation survive a reload if sessionStorage (5 MB in most browsers) cannot hold them all. */
const MIN_KEPT_LINES = 50;

/** A conversation has changed: a `line` of it or, without a line, its count of unread messages. */
export class ConversationEvent extends Event {
  /**
   * @param {"added" | "changed" | "removed" | "counted"} type
   * @param {Conversation} conversation
   * @param {Line} [line]
   */
  constructor(type, conversation, line) {
    super(type);
    this.conversation = conversation;
    this.line = line;
  }
}

/** Fires `added`, `changed` and `removed` for lines, `counted` for unread counts and new conversations. */
export class Conversations extends EventTarget {
  /** @type {Map<string, Conversation>} */
  #byKey = new Map();
  #storage;
  #storageKey;
  #forgotten = false;

  /**
   * @param {Person} me
   * @param {Person[]} people  all users
   * @param {Storage} storage
   */
  constructor(me, people, storage) {
    super();
    this.me = me;
    this.#storage = storage;
    this.#storageKey = `chatrelay-demo ${keyOf(me.uID)}`;
    // The user comes last in the list: people come to write to others.
    const others = people.filter((person) => keyOf(person.uID) !== keyOf(me.uID));
    for (const person of [...others, me]) this.with(person.uID, person);
    this.#restore();
  }

  /** @returns {Conversation[]} */
  get all() {
    return [...this.#byKey.values()];
  }

  /** @returns {number} */
  get unread() {
    return this.all.reduce((sum, { unread }) => sum + unread, 0);
  }

  /** @param {Conversation} conversation */
  isWithMyself(conversation) {
    return keyOf(conversation.person.uID) === keyOf(this.me.uID);
  }

  /**
   * Give the conversation with a user, and create it if there is none. The relay carries messages from everybody who is
   * logged in, so also from users whom this page does not know.
   * @param {UserID} uID
   * @param {Person} [person]
   * @returns {Conversation}
   */
  with(uID, person = { uID, name: `User ${uID}`, tone: STRANGER }) {
    let conversation = this.#byKey.get(keyOf(uID));
    if (!conversation) {
      conversation = { person, lines: [], unread: 0, draft: "" };
      this.#byKey.set(keyOf(uID), conversation);
      this.dispatchEvent(new ConversationEvent("counted", conversation));
    }
    return conversation;
  }

  /** @param {Conversation} conversation @param {Line} line */
  add(conversation, line) {
    conversation.lines.push(line);
    this.dispatchEvent(new ConversationEvent("added", conversation, line));
    if (conversation.lines.length <= MAX_LINES) return;
    const oldest = conversation.lines.find(({ status }) => status !== "waiting" && status !== "sending");
    if (oldest) this.remove(conversation, oldest);
  }

  /** @param {Conversation} conversation @param {Line} line @param {Partial<Line>} change */
  change(conversation, line, change) {
    Object.assign(line, { reason: undefined }, change);
    this.dispatchEvent(new ConversationEvent("changed", conversation, line));
  }

  /** @param {Conversation} conversation @param {Line} line */
  remove(conversation, line) {
    conversation.lines = conversation.lines.filter((other) => other !== line);
    this.dispatchEvent(new ConversationEvent("removed", conversation, line));
  }

  /**
   * Add a message from the relay.
   * @param {Message} message
   * @param {number} now  ms
   * @returns {{ conversation: Conversation, isNew: boolean }}
   */
  receive({ fromuID, content, timeStamp }, now) {
    const conversation = this.with(fromuID);
    if (!this.isWithMyself(conversation)) {
      this.add(conversation, { content, at: now, status: "received" });
      return { conversation, isNew: true };
    }
    // A message to oneself comes back to all tabs of the user. The tab that wrote it has the line already. That the message
    // came back shows that it has arrived, even if the answer is lost.
    const mine = conversation.lines.find((line) => line.timeStamp === timeStamp && line.content === content);
    if (mine) this.change(conversation, mine, { status: "delivered" });
    else this.add(conversation, { content, at: now, status: "delivered" });
    return { conversation, isNew: !mine };
  }

  /** @param {Conversation} conversation @param {number} unread */
  count(conversation, unread) {
    if (conversation.unread === unread) return;
    conversation.unread = unread;
    this.dispatchEvent(new ConversationEvent("counted", conversation));
  }

  /**
   * Give the lines that wait for the connection, oldest first within a conversation.
   * @returns {{ conversation: Conversation, line: Line }[]}
   */
  get waiting() {
    return this.all.flatMap((conversation) =>
      conversation.lines.filter(({ status }) => status === "waiting").map((line) => ({ conversation, line })),
    );
  }

  /**
   * Give the lines that waited when the page was left, in the order in which they were written.
   * @returns {{ conversation: Conversation, line: Line }[]}
   */
  get kept() {
    return this.all
      .flatMap((conversation) =>
        conversation.lines.filter(({ status }) => status === "kept").map((line) => ({ conversation, line })),
      )
      .sort((one, other) => one.line.at - other.line.at);
  }

  /** Keep everything for the next page in the same tab. */
  save() {
    if (this.#forgotten) return;
    for (const lines of [MAX_LINES, MIN_KEPT_LINES]) {
      const kept = this.all.map((conversation) => ({ ...conversation, lines: conversation.lines.slice(-lines) }));
      try {
        this.#storage.setItem(this.#storageKey, JSON.stringify(kept));
        return;
      } catch {
        // The storage is too small: keep less.
      }
    }
  }

  /** Forget everything: after a logout the next person at this screen should find nothing. */
  forget() {
    this.#forgotten = true;
    this.#storage.removeItem(this.#storageKey);
  }

  #restore() {
    /** @type {Conversation[]} */
    const kept = JSON.parse(this.#storage.getItem(this.#storageKey) ?? "[]");
    for (const { person, lines, unread, draft } of kept) {
      const conversation = this.with(person.uID, person);
      Object.assign(conversation, { lines, unread, draft });
      for (const line of lines) {
        // The page was left before the answer came.
        if (line.status === "sending") line.status = "unknown";
        // Do not send it by itself: it may be old, and a duplicated tab has the same lines.
        if (line.status === "waiting") line.status = "kept";
      }
    }
  }
}
