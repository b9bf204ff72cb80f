/**
 * The chat page: connect the connection, the conversations and the document.
 *
 * It decides what the parts leave open: when a message that waits is sent, what counts as read, where the keyboard
 * focus is, and what a screen reader says. It learns only from the website who somebody is.
 */

/** @import { ChatMessageEvent } from "./chatrelay.js" */
/** @import { Conversation, Line, Person } from "./conversations.js" */

import { whenAnotherPageLoads } from "./another-page.js";
import { ChatClient, MAX_CONTENT_BYTES, bytesOf } from "./chatrelay.js";
import { Conversations, keyOf } from "./conversations.js";
import { MessageList } from "./message-list.js";
import { PeopleList, addressOf, drawAvatar, make } from "./people-list.js";
import { connectionPill, leftUnsent, lineStatus, trouble } from "./words.js";

/** @param {string} id @returns {HTMLElement} */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const page = {
  announcer: element("announcer"),
  composer: /** @type {HTMLFormElement} */ (element("composer")),
  connection: element("connection"),
  conversation: element("conversation"),
  hint: element("hint"),
  remedy: element("remedy"),
  text: /** @type {HTMLTextAreaElement} */ (element("text")),
  trouble: element("trouble"),
  troubleText: element("trouble-text"),
  unsent: element("unsent"),
  unsentText: element("unsent-text"),
};

const HINT = page.hint.textContent ?? "";

/** After the relay has refused a message as rate-limited, nothing is sent for this long (ms). */
const RATE_LIMITED_WAIT = 1_000;

/**
 * Ask the website who is logged in here.
 * @returns {Promise<{ me: Person | null, people: Person[], relayPort: number }>}
 */
async function whoAmI() {
  const answer = await fetch("/whoami");
  if (!answer.ok) throw new Error(`The website answered ${answer.status}.`);
  return answer.json();
}

try {
  const { me, people, relayPort } = await whoAmI();
  if (me) start(me, people, relayPort);
  else location.reload(); // logged out since the page was loaded: the website shows another page then
} catch (error) {
  page.troubleText.textContent = "The chat could not be loaded.";
  page.remedy.textContent = "Reload";
  page.remedy.onclick = () => location.reload();
  page.trouble.hidden = false;
  throw error;
}

/** @param {Person} me @param {Person[]} people @param {number} relayPort */
function start(me, people, relayPort) {
  const conversations = new Conversations(me, people, sessionStorage);
  const client = new ChatClient(`ws://${location.hostname}:${relayPort}/`, {
    user: me.uID,
    whoami: "/whoami",
  });
  const peopleList = new PeopleList(element("people"), conversations);
  const messageList = new MessageList(
    { scroll: element("scroll"), list: element("lines"), newer: element("newer") },
    conversations,
    { again, discard },
  );

  /** @type {Conversation | null} */
  let open = null;

  /** When to continue sending, after the relay has answered rate-limited. @type {number | undefined} */
  let slower;

  /** What is wrong with the connection, in words. */
  function problemNow() {
    const { state } = client;
    const uID = state.name === "logged-out" ? state.somebodyElse : undefined;
    const name = people.find((person) => uID !== undefined && keyOf(person.uID) === keyOf(uID))?.name;
    return trouble(state, name ?? uID ?? null, performance.now());
  }

  // After a logout, or a login as another user, another tab has just loaded a page of the site.
  whenAnotherPageLoads(() => void client.check());

  // ---- Sending ----------------------------------------------------------------------------------

  /** @param {Conversation} conversation @param {Line} line @returns {Promise<boolean>} whether it was sent */
  async function send(conversation, line) {
    const timeStamp = client.nextTimeStamp();
    conversations.change(conversation, line, { status: "sending", timeStamp });
    const outcome = await client.send(conversation.person.uID, line.content, timeStamp);
    if (outcome.result === "not-sent") {
      conversations.change(conversation, line, { status: "waiting" });
      return false;
    }
    if (outcome.result === "refused" && outcome.reason === "rate-limited") {
      // It is sent later by itself, before what is written meanwhile.
      conversations.change(conversation, line, { status: "waiting", reason: "rate-limited" });
      clearTimeout(slower);
      slower = setTimeout(() => void sendWaiting(), RATE_LIMITED_WAIT);
      return false;
    }
    // A message to oneself may come back before the answer, or without one.
    if (line.status === "delivered") return true;
    const reason = outcome.result === "refused" ? outcome.reason : undefined;
    conversations.change(conversation, line, { status: outcome.result, reason });
    if (outcome.result !== "delivered") announce(lineStatus(line, conversation.person.name).text);
    return true;
  }

  /** @param {Conversation} conversation @param {string} content */
  function write(conversation, content) {
    /** @type {Line} */
    const line = { content, at: Date.now(), status: "waiting", reason: whyWaiting() };
    conversations.add(conversation, line);
    // Send what waits first, so that messages arrive in the order in which they were written.
    if (client.state.name === "connected" && conversations.waiting.length === 1) void send(conversation, line);
  }

  /** Give the reason why a message cannot be sent at once, if the page has a text for it. */
  const whyWaiting = () => (client.state.name === "logged-out" ? "logged-out" : undefined);

  function sayWhyWaiting() {
    const reason = whyWaiting();
    for (const { conversation, line } of conversations.waiting) {
      if (line.reason !== reason && line.reason !== "rate-limited") {
        conversations.change(conversation, line, { reason });
      }
    }
  }

  /** Send what waits one by one, each after the answer to the one before: in order, and not faster than allowed. */
  async function sendWaiting() {
    while (client.state.name === "connected") {
      const [next] = conversations.waiting;
      if (!next || !(await send(next.conversation, next.line))) return;
    }
  }

  /** Move a line to the end of the conversation, with the time of now. @param {Conversation} conversation @param {Line} line */
  function again(conversation, line) {
    conversations.remove(conversation, line);
    write(conversation, line.content);
    focusConversation();
  }

  /** @param {Conversation} conversation @param {Line} line */
  function discard(conversation, line) {
    conversations.remove(conversation, line);
    focusConversation();
  }

  // ---- What was left unsent ---------------------------------------------------------------------

  // Messages stay unsent after a reload, or when the session has ended and the same user has logged in again. They may be
  // old, and a duplicated tab has the same ones, so the user decides whether to send them.

  function showUnsent() {
    const { kept } = conversations;
    const text = kept.length ? leftUnsent(kept.map(({ conversation }) => nameOf(conversation))) : "";
    const hadFocus = page.unsent.contains(document.activeElement);
    page.unsent.hidden = !text || client.state.name !== "connected";
    if (page.unsent.hidden && hadFocus) focusConversation();
    const shown = page.unsent.hidden ? "" : text;
    if (shown && shown !== page.unsentText.textContent) announce(shown);
    page.unsentText.textContent = shown;
  }

  /** @param {Conversation} conversation */
  const nameOf = (conversation) => (conversations.isWithMyself(conversation) ? "yourself" : conversation.person.name);

  element("send-unsent").addEventListener("click", () => {
    const isSending = conversations.waiting.length > 0;
    for (const { conversation, line } of conversations.kept) {
      conversations.remove(conversation, line);
      conversations.add(conversation, { content: line.content, at: Date.now(), status: "waiting" });
    }
    if (!isSending) void sendWaiting();
  });

  element("show-unsent").addEventListener("click", () => {
    const [first] = conversations.kept;
    if (first) location.hash = addressOf(first.conversation);
  });

  for (const type of ["changed", "removed"]) conversations.addEventListener(type, showUnsent);

  // ---- Receiving --------------------------------------------------------------------------------

  client.addEventListener("message", (event) => {
    const { message } = /** @type {ChatMessageEvent} */ (event);
    const { conversation, isNew } = conversations.receive(message, Date.now());
    if (!isNew) return;
    if (!isBeingRead(conversation)) conversations.count(conversation, conversation.unread + 1);
    announce(`${conversation.person.name}: ${message.content}`);
  });

  /** @param {Conversation} conversation */
  const isBeingRead = (conversation) => conversation === open && document.visibilityState === "visible";

  conversations.addEventListener("counted", () => {
    document.title = (conversations.unread ? `(${conversations.unread}) ` : "") + `${me.name} – chatrelay demo`;
  });

  // ---- The open conversation --------------------------------------------------------------------

  function openFromAddress() {
    if (open) open.draft = page.text.value;
    open = conversations.all.find((conversation) => addressOf(conversation) === location.hash) ?? null;
    page.conversation.hidden = !open;
    element("nobody").hidden = open !== null;
    document.body.toggleAttribute("data-open", open !== null);
    peopleList.open(open);
    messageList.open(open);
    if (!open) return;

    const { person } = open;
    const myself = conversations.isWithMyself(open);
    element("with").textContent = person.name;
    drawAvatar(element("with-avatar"), person);
    element("beginning").textContent = myself
      ? "Notes to yourself. They reach every browser in which you are logged in here."
      : `What you and ${person.name} write from now on. Earlier messages are not shown here.`;
    element("text-label").textContent = `Message to ${person.name}`;
    page.text.placeholder = myself ? "Write to yourself" : `Write to ${person.name}`;
    page.text.value = open.draft;
    fitComposer();
    conversations.count(open, 0);
    focusConversation();
  }

  /** Focus the text field, but not on a touch screen: there the keyboard would cover the messages. */
  function focusConversation() {
    (matchMedia("(pointer: coarse)").matches ? element("with") : page.text).focus();
  }

  // ---- The composer -----------------------------------------------------------------------------

  function fitComposer() {
    page.text.style.height = "auto";
    page.text.style.height = `${page.text.scrollHeight + 2}px`;
    const over = bytesOf(page.text.value) - MAX_CONTENT_BYTES;
    page.hint.textContent = over > 0 ? `Too long by ${over.toLocaleString()} bytes. Send it in parts.` : HINT;
    page.hint.classList.toggle("bad", over > 0);
    page.text.setAttribute("aria-invalid", String(over > 0));
  }

  page.text.addEventListener("input", fitComposer);

  page.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      page.composer.requestSubmit();
    } else if (event.key === "Escape") {
      if (element("people").offsetParent) peopleList.focus();
      else location.hash = ""; // on a narrow screen, "back" leads to the list
    }
  });

  page.composer.addEventListener("submit", (event) => {
    event.preventDefault();
    // The relay accepts neither NUL nor half a surrogate pair. Both come from pasting, and a reader does not miss them.
    const content = page.text.value.replaceAll("\0", "").toWellFormed().trimEnd();
    if (!open || !content) return;
    if (bytesOf(content) > MAX_CONTENT_BYTES) return announce(page.hint.textContent ?? "");
    write(open, content);
    page.text.value = "";
    fitComposer();
    page.text.focus();
  });

  // ---- The connection ---------------------------------------------------------------------------

  /** @type {number | undefined} */
  let countdown;

  /** The problem that a screen reader was given last; empty: none. */
  let known = "";

  client.addEventListener("state", () => {
    clearInterval(countdown);
    if (client.state.name === "waiting") countdown = setInterval(showConnection, 1000);
    showConnection();
    if (client.state.name === "connecting") return;
    sayWhyWaiting();
    showUnsent();
    // Attempt after attempt fails for the same reason. Say the reason once, and then that it is over.
    const text = problemNow()?.text ?? "";
    if (text !== known) announce(text || "Connected again.");
    known = text;
    void sendWaiting();
  });

  function showConnection() {
    page.connection.textContent = connectionPill(client.state);
    page.connection.dataset.state = client.state.name;
    if (client.state.name === "connecting" && known) {
      // Keep the text while connecting, so that the page does not jump with each attempt.
      page.troubleText.textContent = `${known} Trying now…`;
      return;
    }
    const problem = problemNow();
    const hadFocus = document.activeElement === page.remedy;
    page.trouble.hidden = !problem;
    if (!problem) {
      if (hadFocus) focusConversation();
      return;
    }
    page.troubleText.textContent = [problem.text, problem.countdown].filter(Boolean).join(" ");
    page.remedy.textContent = problem.remedy;
    page.remedy.onclick = problem.action === "connect" ? () => client.connect() : reload;
  }

  function reload() {
    leaving = true;
    location.reload();
  }

  /** @param {string} text */
  function announce(text) {
    // Use a new element each time, so that the same sentence is read out again.
    page.announcer.replaceChildren(make("p", "", text));
  }

  // ---- The page itself --------------------------------------------------------------------------

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState !== "visible") return;
    if (open) conversations.count(open, 0);
    void client.check();
  });

  addEventListener("hashchange", () => {
    openFromAddress();
    if (!open) peopleList.focus();
  });

  /** Whether the user leaves the page by one of its buttons, and so knows the consequence. */
  let leaving = false;

  // Unsent messages survive a reload of the tab, but not its closing: let the browser ask.
  addEventListener("beforeunload", (event) => {
    if (!leaving && conversations.waiting.length) event.preventDefault();
  });

  addEventListener("pagehide", () => {
    if (open) open.draft = page.text.value;
    conversations.save();
  });

  element("log-out").addEventListener("submit", (event) => {
    const unsent = conversations.waiting.length + conversations.kept.length;
    if (
      unsent &&
      !confirm(`${unsent} of your messages could not be sent yet and will be lost. Log out anyway?`)
    ) {
      event.preventDefault();
      return;
    }
    leaving = true;
    conversations.forget();
  });

  element("my-name").textContent = me.name;
  drawAvatar(element("my-avatar"), me);
  const other = element("other-origin");
  const otherHost = location.hostname === "localhost" ? "127.0.0.1" : "localhost";
  other.setAttribute("href", `http://${otherHost}:${location.port}`);
  other.textContent = `${otherHost}:${location.port}`;
  document.title = `${me.name} – chatrelay demo`;
  openFromAddress();
  showConnection();
  client.connect();
}
