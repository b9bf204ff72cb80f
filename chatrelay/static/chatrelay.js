/**
 * A client for the chatrelay relay: one connection that keeps itself up.
 *
 *     const client = new ChatClient("wss://example.org/chat");
 *     client.addEventListener("message", (event) => show(event.message));
 *     client.addEventListener("state", (event) => tell(event.state));
 *     client.connect();
 *     const outcome = await client.send("42", "Hej");
 *
 * It speaks the wire format v1 (docs/protocol.rst), reconnects by itself, and gives every message an id so that each
 * answer finds its question. It must not know what a page looks like or what a person should read, and it keeps no
 * message: one that can't be sent now comes back as "not-sent", and what to do with it is the caller's decision.
 *
 * No dependencies, no build step: `import { ChatClient } from "./chatrelay.js"`.
 */

/** A uID as the relay carries it. `7` and `"7"` are the same user. @typedef {string | number} UserID */

/**
 * A message as it arrives.
 * @typedef {object} Message
 * @property {string | number} timeStamp  the sender's own, whatever it is
 * @property {UserID} fromuID  who the website says the sender is
 * @property {UserID} touID
 * @property {string} content
 */

/**
 * What became of a message. Exactly one of these, and nothing stronger than the relay promises:
 *
 * - `delivered`: in the message log, and handed to at least one of the recipient's connections
 * - `refused`: the relay said no; `reason` is one of docs/protocol.rst, such as "receiving-user-not-connected"
 * - `unknown`: it left, and the connection ended before an answer came. It may or may not have arrived
 * - `not-sent`: there was no logged-in connection; it never left
 *
 * @typedef {{ result: "delivered" | "unknown" | "not-sent" } | { result: "refused", reason: string }} Outcome
 */

/**
 * What the connection is doing.
 *
 * - `idle`: nothing, as asked (`connect` was not called yet, or `close` was)
 * - `connecting`: the connection is being opened, or the relay is asking the website who this is
 * - `connected`: logged in; messages come and go
 * - `waiting`: there is no connection; the next attempt is at `retryAt` (milliseconds, as `Date.now()`). `reason` says
 *   what the relay said ("webserver-unavailable"), `code` how the last connection was closed
 * - `logged-out`: the website says that nobody is logged in here. Log in there, then `connect` or `login`
 * - `ended`: the relay closed the connection for good, with the close `code` 4500-4999. `connect` tries all the same
 *
 * @typedef {{ name: "idle" | "connecting" | "connected" | "logged-out" }
 *   | { name: "waiting", retryAt: number, code?: number, reason?: string }
 *   | { name: "ended", code: number }} State
 */

/** The longest content the relay takes, in bytes of UTF-8. */
export const MAX_CONTENT_BYTES = 16 * 1024;

/** The relay closes a connection that sends a larger WebSocket message (code 1009), so it is not sent at all. */
const MAX_FRAME_BYTES = 64 * 1024;

const SUBPROTOCOL = "chatrelay.v1";

const ENCODER = new TextEncoder();

/** @param {string} content @returns {number} its length as the relay counts it */
export const bytesOf = (content) => ENCODER.encode(content).length;

/** A message has arrived. */
export class ChatMessageEvent extends Event {
  /** @param {Message} message */
  constructor(message) {
    super("message");
    this.message = message;
  }
}

/** The connection does something else now. */
export class StateEvent extends Event {
  /** @param {State} state */
  constructor(state) {
    super("state");
    this.state = state;
  }
}

/** The relay could not use something that this client sent: a mistake in the program, not in the message. */
export class ProtocolErrorEvent extends Event {
  /** @param {string} reason @param {string} detail */
  constructor(reason, detail) {
    super("protocol-error");
    this.reason = reason;
    this.detail = detail;
  }
}

/**
 * @typedef {object} Options
 * @property {() => boolean | Promise<boolean>} [mayConnect]  asked before every attempt, so that the page can look
 *   whether the visitor is still logged in, and as whom. False stops as "logged-out"; an exception counts as a failed
 *   attempt
 * @property {number} [firstDelay]  ms before the first new attempt; doubles with each that fails. Default 1000
 * @property {number} [longestDelay]  ms. Default 30,000
 * @property {number} [connectTimeout]  ms for opening and logging in. Default 15,000
 * @property {number} [answerTimeout]  ms to wait for the answer to a message before the connection counts as dead.
 *   Default 20,000
 */

/** @type {Required<Options>} */
const DEFAULTS = {
  mayConnect: () => true,
  firstDelay: 1_000,
  longestDelay: 30_000,
  connectTimeout: 15_000,
  answerTimeout: 20_000,
};

/** A connection has to last this long (ms) before the next loss counts as a first one. */
const STEADY = 10_000;

/** "The relay is full; come back later": the wait starts this many doublings up. */
const RELAY_FULL = 4003;
const RELAY_FULL_DOUBLINGS = 4;

/** Fires `message` (ChatMessageEvent), `state` (StateEvent) and `protocol-error` (ProtocolErrorEvent). */
export class ChatClient extends EventTarget {
  #url;
  #options;

  /** @type {State} */
  #state = { name: "idle" };

  /** The socket in use. What an abandoned one still says is not heard. @type {WebSocket | null} */
  #socket = null;

  /**
   * What to log in with; undefined: the session cookie that the browser sends in the handshake.
   * @type {string | undefined}
   */
  #sessid;

  /**
   * Requests without an answer yet, by id.
   * @type {Map<string, { answer: (outcome: Outcome) => void, timer: number }>}
   */
  #pending = new Map();

  #attempts = 0;
  #connectedAt = 0;
  #timer = 0;
  #lastID = 0;
  #lastTimeStamp = 0;

  // Unique over connections, reloads and tabs: an answer must never be taken for another message's.
  #idPrefix = crypto.getRandomValues(new Uint32Array(3)).join("-");

  /**
   * @param {string | URL} url  where the relay listens: ws://… or wss://…
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    super();
    this.#url = String(url);
    this.#options = { ...DEFAULTS, ...options };
    // The network is back: no reason to sit out the wait.
    globalThis.addEventListener?.("online", () => {
      if (this.#state.name === "waiting") this.connect();
    });
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /** Connect and log in now, whatever the state; a connection that is up or coming up is left alone. */
  connect() {
    if (this.#state.name === "connecting" || this.#state.name === "connected") return;
    void this.#attempt();
  }

  /**
   * Log in with a session id that the page knows, and keep using it when reconnecting. A page whose session cookie is
   * HttpOnly doesn't need this: `connect` logs in with the cookie.
   * @param {string} [sessid]  undefined: with the cookie
   */
  login(sessid) {
    this.#sessid = sessid;
    this.#abandon();
    void this.#attempt();
  }

  /**
   * Send a message.
   * @param {UserID} touID
   * @param {string} content  at most MAX_CONTENT_BYTES
   * @param {number} [timeStamp]  see `nextTimeStamp`
   * @returns {Promise<Outcome>}  never rejects
   */
  send(touID, content, timeStamp = this.nextTimeStamp()) {
    if (this.#state.name !== "connected" || this.#socket?.readyState !== WebSocket.OPEN) {
      return Promise.resolve({ result: "not-sent" });
    }
    const id = `${this.#idPrefix}-${++this.#lastID}`;
    const frame = JSON.stringify({ type: "message-send-request", id, message: { timeStamp, touID, content } });
    if (bytesOf(content) > MAX_CONTENT_BYTES || bytesOf(frame) > MAX_FRAME_BYTES) {
      return Promise.resolve({ result: "refused", reason: "invalid-message" });
    }
    this.#socket.send(frame);
    return new Promise((answer) => {
      const timer = setTimeout(() => this.#lost({}), this.#options.answerTimeout);
      this.#pending.set(id, { answer, timer });
    });
  }

  /** @returns {number} the time now in ms, but never the same number twice: it tells this client's messages apart */
  nextTimeStamp() {
    this.#lastTimeStamp = Math.max(Date.now(), this.#lastTimeStamp + 1);
    return this.#lastTimeStamp;
  }

  /** End the connection, and stay so until `connect`. */
  close() {
    this.#end({ name: "idle" });
  }

  async #attempt() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost({}), this.#options.connectTimeout);
    const state = this.#enter({ name: "connecting" });
    let goOn = () => this.#open();
    try {
      if (!(await this.#options.mayConnect())) goOn = () => this.#end({ name: "logged-out" });
    } catch {
      goOn = () => this.#lost({});
    }
    // Meanwhile it may have been closed, begun anew, or given up.
    if (this.#state === state) goOn();
  }

  #open() {
    const socket = new WebSocket(this.#url, SUBPROTOCOL);
    this.#socket = socket;
    socket.onopen = () => socket.send(JSON.stringify({ type: "auth-request", SESSID: this.#sessid }));
    socket.onmessage = ({ data }) => {
      if (socket === this.#socket) this.#receive(data);
    };
    socket.onclose = ({ code }) => {
      if (socket === this.#socket) this.#lost({ code });
    };
  }

  /** @param {unknown} data */
  #receive(data) {
    const frame = JSON.parse(String(data));
    switch (frame.type) {
      case "auth-response":
        return this.#loggedIn(frame.response, frame.reason);
      case "message":
        return this.dispatchEvent(new ChatMessageEvent(frame.message));
      case "send-request-response":
        return this.#answered(frame.response);
      case "error":
        return this.dispatchEvent(new ProtocolErrorEvent(frame.reason, frame.detail));
      default: // a later relay may say more than we know
    }
  }

  /** @param {boolean} response @param {string} [reason] */
  #loggedIn(response, reason) {
    if (response) {
      clearTimeout(this.#timer);
      this.#connectedAt = Date.now();
      this.#enter({ name: "connected" });
    } else if (reason) {
      this.#lost({ reason });
    } else {
      // The handshake carried the cookie, so another try needs another handshake.
      this.#end({ name: "logged-out" });
    }
  }

  /** @param {{ id: string | number, value: boolean, reason?: string }} response */
  #answered({ id, value, reason }) {
    const request = this.#pending.get(String(id));
    if (!request) return;
    this.#pending.delete(String(id));
    clearTimeout(request.timer);
    request.answer(value ? { result: "delivered" } : { result: "refused", reason: String(reason) });
  }

  /**
   * The connection is gone, or as good as gone: go on without it.
   * @param {{ code?: number, reason?: string }} why
   */
  #lost({ code, reason }) {
    if (code === 4500 || code === 4501) return this.#end({ name: "logged-out" });
    if (code !== undefined && code > 4501 && code <= 4999) return this.#end({ name: "ended", code });
    this.#abandon();
    if (this.#connectedAt && Date.now() - this.#connectedAt > STEADY) this.#attempts = 0;
    this.#connectedAt = 0;
    if (code === RELAY_FULL) this.#attempts = Math.max(this.#attempts, RELAY_FULL_DOUBLINGS);
    // Between half and the whole of it, at random: everybody lost the relay at the same moment and must not come back
    // at the same moment.
    const longest = Math.min(this.#options.firstDelay * 2 ** this.#attempts++, this.#options.longestDelay);
    const delay = longest * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => void this.#attempt(), delay);
    this.#enter({ name: "waiting", retryAt: Date.now() + delay, code, reason });
  }

  /** Without a connection, and no new attempt by itself. @param {State} state */
  #end(state) {
    this.#abandon();
    this.#enter(state);
  }

  /** Let go of the socket and of the questions that were on it. */
  #abandon() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { answer, timer } of pending) {
      clearTimeout(timer);
      answer({ result: "unknown" });
    }
  }

  /** @param {State} state @returns {State} */
  #enter(state) {
    this.#state = state;
    this.dispatchEvent(new StateEvent(state));
    return state;
  }
}
