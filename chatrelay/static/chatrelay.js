/**
 * A client for chatrelay: one connection for one user, which reconnects by itself.
 *
 *     const client = new ChatClient("wss://example.org/chat", { user: 42, whoami: "/whoami" });
 *     client.addEventListener("message", (event) => show(event.message));
 *     client.addEventListener("state", (event) => tell(event.state));
 *     client.connect();
 *     const outcome = await client.send("42", "Hej");
 *
 * It speaks version 1 of the protocol (docs/protocol.rst), and gives each message an id to find its answer. It must not
 * know what a page looks like or what a person should read. It keeps no message: one that cannot be sent now comes back
 * as "not-sent", and the caller decides what to do with it.
 *
 * No dependencies, no build step: `import { ChatClient } from "./chatrelay.js"`.
 */

/** A uID as the relay sends it. `7` and `"7"` are the same user. @typedef {string | number} UserID */

/**
 * A message as it arrives.
 * @typedef {object} Message
 * @property {string | number} timeStamp  as the sender gave it
 * @property {UserID} fromuID  the sender, as the website named them
 * @property {UserID} touID
 * @property {string} content
 */

/**
 * What became of a message. It is exactly one of these, and no stronger than what the relay promises:
 *
 * - `delivered`: in the message log, and handed to at least one of the recipient's connections
 * - `refused`: the relay refused it; `reason` is one of docs/protocol.rst, such as "receiving-user-not-connected"
 * - `unknown`: it was sent, and the connection ended before the answer came. It may or may not have arrived
 * - `not-sent`: it was not sent, because no connection was logged in
 *
 * @typedef {{ result: "delivered" | "unknown" | "not-sent" } | { result: "refused", reason: string }} Outcome
 */

/**
 * The state of the connection.
 *
 * - `idle`: there is no connection. `connect` was not called yet, or `close` was called, or the browser has frozen the
 *   page or keeps it in its back/forward cache
 * - `connecting`: the connection is being opened, and the website is asked who is logged in
 * - `connected`: logged in as `user`; messages can be sent and received
 * - `waiting`: there is no connection; the next attempt is at `retryAt` (ms, as `performance.now()`). `code` is the code
 *   with which the last connection was closed. `reason` is one of the relay's (such as "webserver-unavailable"), or of
 *   the client's own: "insecure-url" (ws:// on a page of https://), "blocked-by-policy" (the page's
 *   Content-Security-Policy does not allow it in `connect-src`). `error` is what `whoami`, `login` or the browser threw
 * - `logged-out`: the website says that `user` is not logged in here. If another user is, `somebodyElse` is their
 *   uID. Have the user log in at the website, then call `connect`
 * - `ended`: the relay closed the connection for good, with the close `code` 4502-4999. `connect` tries again all the
 *   same. After 4505, which a logout in any browser may have caused, the client asks `whoami`. If that is not `user`, the
 *   state becomes `logged-out`. If it still is `user` after some ten seconds, the client connects once more
 *
 * @typedef {{ name: "idle" | "connecting" | "connected" }
 *   | { name: "waiting", retryAt: number, code?: number, reason?: string, error?: unknown }
 *   | { name: "logged-out", somebodyElse?: UserID }
 *   | { name: "ended", code: number }} State
 */

/** The longest content that the relay accepts, in bytes of UTF-8. */
export const MAX_CONTENT_BYTES = 16 * 1024;

/** The relay closes a connection that sends a larger WebSocket message (code 1009), so such a message is not sent. */
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

/** The state of the connection has changed. */
export class StateEvent extends Event {
  /** @param {State} state */
  constructor(state) {
    super("state");
    this.state = state;
  }
}

/** The relay could not use something that this client sent: a mistake of the program, not of the message. */
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
 * @property {UserID} user  the user for whom the page was made. The client never connects as another user. If another
 *   user or nobody is logged in now, perhaps because of another tab, it stops as "logged-out"
 * @property {string | URL | (() => UserID | null | Promise<UserID | null>)} [whoami]  who is logged in at the website
 *   in this browser now: the address of a page that answers `{"loggedin": true, "uID": 42}` or `{"loggedin": false}`, or a
 *   function that gives the uID, or null for nobody. The client asks before each login, and again after it before it
 *   sends anything. Required unless `login` is given
 * @property {() => string | null | Promise<string | null>} [login]  gives the SESSID to log in with: a one-time ticket
 *   or a session id, which must be of `user`; null if `user` is no longer logged in. The client calls it before each
 *   login, so a ticket is sent once. Without it, the cookie of the browser logs in
 * @property {number} [firstDelay]  ms before the first new attempt; doubles with each failure. Default 1000
 * @property {number} [longestDelay]  ms, while the page is visible. Default 30,000; five minutes while it is hidden
 * @property {number} [connectTimeout]  ms for opening and logging in. Default 15,000
 * @property {number} [answerTimeout]  ms to wait for an answer before the connection counts as dead. Default 20,000
 */

const DEFAULTS = {
  firstDelay: 1_000,
  longestDelay: 30_000,
  connectTimeout: 15_000,
  answerTimeout: 20_000,
};

/** The longest wait (ms) between two attempts while the page is hidden. */
const LONGEST_DELAY_HIDDEN = 5 * 60_000;

/** A connection must last this long (ms) before the next loss counts as the first one. */
const STEADY = 10_000;

/** A page that was hidden for this long (ms) checks its connection when it is visible again. */
const LONG_HIDDEN = 60_000;

/** A connection is checked after this long (ms), and up to a fifth more at random, without a message. */
const SILENCE = 5 * 60_000;

/** After 4003 ("The relay is full; come back later") the first wait is doubled this many times. */
const RELAY_FULL = 4003;
const RELAY_FULL_DOUBLINGS = 4;

/** The operator or the site has ended the connection, mostly because the user has logged out in some browser. */
const ENDED_BY_SITE = 4505;

/**
 * After 4505 the client waits this long (ms) before it asks the website whether `user` is still logged in, and as long
 * again before it asks once more. If it asked at once, it would send the old cookie, and the response to that may delete
 * the new one.
 */
const ENDED_LOOK = 1_500;

/** After this long (ms), and up to twice as long at random, a user who is still logged in connects once more. */
const ONCE_MORE = 8_000;

/** What `whoami` should answer, for a warning in the console. */
const EXPECTED = 'it should be {"loggedin": true, "uID": …} or {"loggedin": false}';

/** Fires `message` (ChatMessageEvent), `state` (StateEvent) and `protocol-error` (ProtocolErrorEvent). */
export class ChatClient extends EventTarget {
  #url;
  #options;

  /** @type {State} */
  #state = { name: "idle" };

  /** The socket in use. Events of a socket that was given up are ignored. @type {WebSocket | null} */
  #socket = null;

  /** Aborted when this attempt or connection is given up: later answers of the website are then ignored. */
  #current = new AbortController();

  /** Removes the listeners of the page. They exist from `connect` until the client no longer reconnects. */
  #listeners = new AbortController();

  /**
   * Requests without an answer yet, by id.
   * @type {Map<string, { answer: (outcome: Outcome) => void, timer: number }>}
   */
  #pending = new Map();

  /** The timer of the state: give up the attempt, try again, check the connection, or give the connection up. */
  #timer = 0;

  #attempts = 0;

  /** Whether the relay has denied the session and a new handshake has begun, which may carry a newer cookie. */
  #isSecondHandshake = false;

  /** Whether a mistake of the website was reported in the console. */
  #hasWarned = false;

  /** Whether an auth-request was sent on the connection only to see whether an answer comes. */
  #isChecking = false;

  // Times are those of performance.now(), because nobody sets that clock.
  #connectedAt = 0;
  #heardAt = 0;
  #hiddenAt = 0;

  #lastID = 0;
  #lastTimeStamp = 0;

  // Unique over connections, reloads and tabs, so that no answer is taken for that of another message.
  #idPrefix = crypto.getRandomValues(new Uint32Array(3)).join("-");

  /**
   * @param {string | URL} url  where the relay listens: ws://… or wss://…, or relative to the page
   * @param {Options} options
   * @throws {TypeError} if the address cannot be parsed, or if `user`, or both `whoami` and `login`, are missing
   */
  constructor(url, options) {
    super();
    this.#url = new URL(url, globalThis.document?.baseURI);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    if ((options?.user ?? null) === null) throw new TypeError("ChatClient needs `user`: for whom the page was made");
    if (!options.whoami && !options.login) throw new TypeError("ChatClient needs `whoami` or `login`");
    this.#options = { ...DEFAULTS, ...options };
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /** Connect and log in now, in any state. Do nothing if connected or connecting. */
  connect() {
    if (this.#state.name === "connecting" || this.#state.name === "connected") return;
    this.#listen();
    void this.#attempt();
  }

  /**
   * Ask the website now who is logged in. Call it when the page learns of a login or a logout in another tab. If it is
   * not `user`, the client stops as "logged-out". If it is, a client that was logged out connects.
   */
  async check() {
    if (this.#state.name === "idle") return;
    const { signal } = this.#current;
    let who;
    try {
      who = await this.#whoIsLoggedIn();
    } catch {
      return; // The website cannot be asked now. It is asked before the next login.
    }
    if (signal.aborted) return;
    if (!this.#isUser(who)) {
      this.#end(this.#loggedOut(who));
    } else if (this.#state.name === "logged-out") {
      this.connect();
    }
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

  /** @returns {number} the time now in ms, but never the same number twice: it identifies a message of this client */
  nextTimeStamp() {
    this.#lastTimeStamp = Math.max(Date.now(), this.#lastTimeStamp + 1);
    return this.#lastTimeStamp;
  }

  /** End the connection, until `connect` is called. */
  close() {
    this.#end({ name: "idle" });
  }

  // ---- The page -------------------------------------------------------------------------------

  #listen() {
    this.#listeners.abort();
    this.#listeners = new AbortController();
    this.#hiddenAt = performance.now();
    const { signal } = this.#listeners;
    const page = globalThis.document;
    // The network is back. The connection may be dead, and no other event would say so.
    globalThis.addEventListener?.("online", () => this.#wake(true), { signal });
    globalThis.addEventListener?.("focus", () => this.#wake(false), { signal });
    page?.addEventListener("visibilitychange", () => {
      if (page.hidden) this.#hiddenAt = performance.now();
      else this.#wake(performance.now() - this.#hiddenAt >= LONG_HIDDEN);
    }, { signal });
    // No script runs in a page that is frozen or in the back/forward cache, but the browser would keep its connection
    // open. Senders would be told that messages were delivered, which nobody sees.
    const standStill = () => {
      if (this.#state.name === "idle") return;
      this.#abandon();
      this.#enter({ name: "idle" });
    };
    globalThis.addEventListener?.("pagehide", standStill, { signal });
    globalThis.addEventListener?.("pageshow", ({ persisted }) => void (persisted && this.connect()), { signal });
    page?.addEventListener("freeze", standStill, { signal });
    page?.addEventListener("resume", () => this.connect(), { signal });
    page?.addEventListener("securitypolicyviolation", (event) => this.#violated(event), { signal });
  }

  /** The page is seen, or the network is back: do not wait. @param {boolean} check  whether to check a connection */
  #wake(check) {
    if (this.#state.name === "waiting") void this.#attempt();
    else if (this.#state.name === "connected" && check) void this.#checkConnection();
  }

  // ---- The connection -------------------------------------------------------------------------

  async #attempt() {
    this.#abandon();
    const { signal } = this.#current;
    this.#timer = setTimeout(() => this.#lost({}), this.#options.connectTimeout);
    this.#enter({ name: "connecting" });
    try {
      // Do not connect as another user even for a moment: messages for them would come here and count as delivered.
      const who = await this.#whoIsLoggedIn();
      if (signal.aborted) return;
      if (!this.#isUser(who)) return this.#end(this.#loggedOut(who));
      const sessid = await this.#options.login?.();
      if (signal.aborted) return;
      if (sessid === null) return this.#end({ name: "logged-out" });
      this.#open(sessid);
    } catch (error) {
      if (!signal.aborted) this.#lost({ reason: "webserver-unavailable", error });
    }
  }

  /** @param {string | undefined} sessid  undefined: log in with the cookie of the handshake */
  #open(sessid) {
    let socket;
    try {
      socket = new WebSocket(this.#url, SUBPROTOCOL);
    } catch (error) {
      const isInsecure = this.#url.protocol === "ws:" && globalThis.location?.protocol === "https:";
      return this.#lost({ reason: isInsecure ? "insecure-url" : "blocked-by-policy", error });
    }
    this.#socket = socket;
    socket.onopen = () => this.#requestLogin(sessid);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code }) => this.#lost({ code });
  }

  /** @param {string | undefined} SESSID */
  #requestLogin(SESSID) {
    this.#socket?.send(JSON.stringify({ type: "auth-request", SESSID }));
  }

  /** @param {unknown} data */
  #receive(data) {
    this.#heardAt = performance.now();
    if (this.#isChecking) this.#watch();
    const frame = JSON.parse(String(data));
    switch (frame.type) {
      case "auth-response":
        return this.#answeredLogin(frame.response, frame.reason);
      case "message":
        // To the relay this connection belongs to another user.
        if (!this.#isUser(frame.message.touID)) return this.#end(this.#loggedOut(frame.message.touID));
        return this.dispatchEvent(new ChatMessageEvent(frame.message));
      case "send-request-response":
        return this.#answered(frame.response);
      case "error":
        this.dispatchEvent(new ProtocolErrorEvent(frame.reason, frame.detail));
        if (this.#state.name === "connecting") this.#lost({ reason: frame.reason }); // this attempt cannot log in
        return;
      default: // ignore what a later version of the relay may send
    }
  }

  /** @param {boolean} response @param {string} [reason] */
  #answeredLogin(response, reason) {
    if (!response && (!reason || reason === "already-logged-in")) {
      this.#denied();
    } else if (this.#state.name !== "connected") {
      if (response) void this.#confirm();
      else this.#lost({ reason });
    }
  }

  /** Become `connected` only as `user`: the cookie may have changed since the website was asked. */
  async #confirm() {
    const { signal } = this.#current;
    try {
      const who = await this.#whoIsLoggedIn();
      if (signal.aborted) return;
      if (!this.#isUser(who)) return this.#end(this.#loggedOut(who));
    } catch (error) {
      if (!signal.aborted) this.#lost({ reason: "webserver-unavailable", error });
      return;
    }
    this.#connectedAt = performance.now();
    this.#watch();
    this.#enter({ name: "connected" });
  }

  /**
   * Try one new handshake when the session was denied or has ended: the website may have renewed the cookie, and only a
   * new handshake carries the new one.
   */
  #denied() {
    this.#forgiveIfSteady();
    if (this.#isSecondHandshake) {
      const { user, whoami } = this.#options;
      if (whoami) {
        this.#warn(`whoami says that user ${user} is logged in here, but the relay was told that nobody is, or had no cookie`);
      }
      return this.#end({ name: "logged-out" });
    }
    this.#isSecondHandshake = true;
    void this.#attempt();
  }

  /**
   * Check the connection when nothing has come for a long time.
   * @param {number} [since]  when something came last, as `performance.now()`
   */
  #watch(since = this.#heardAt) {
    this.#isChecking = false;
    clearTimeout(this.#timer);
    const silence = SILENCE * (1 + Math.random() / 5);
    this.#timer = setTimeout(() => {
      if (performance.now() - this.#heardAt < SILENCE) this.#watch();
      else void this.#checkConnection();
    }, since + silence - performance.now());
  }

  /** Send a request that the relay always answers. It costs the website one request. */
  async #checkConnection() {
    if (this.#isChecking) return;
    this.#isChecking = true;
    const { signal } = this.#current;
    const { login, answerTimeout } = this.#options;
    // If the website fails or does not answer, that says nothing about the relay: the next check is not sooner.
    const later = () => this.#watch(performance.now());
    clearTimeout(this.#timer);
    this.#timer = setTimeout(later, answerTimeout);
    try {
      const sessid = await login?.();
      if (signal.aborted || !this.#isChecking) return; // the connection was given up, or something has come meanwhile
      if (sessid === null) return this.#end({ name: "logged-out" });
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#lost({}), answerTimeout);
      this.#requestLogin(sessid);
    } catch {
      if (!signal.aborted) later();
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

  /** @param {SecurityPolicyViolationEvent} event */
  #violated({ blockedURI, disposition, effectiveDirective }) {
    if (disposition !== "enforce" || effectiveDirective !== "connect-src") return;
    const { whoami } = this.#options;
    const addresses = [this.#url];
    if (whoami && typeof whoami !== "function") addresses.push(new URL(whoami, document.baseURI));
    // Browsers report only the scheme if it is not http or https, or the whole address.
    const isOurs = addresses.some(({ protocol, origin }) => `${blockedURI}:` === protocol || blockedURI.startsWith(origin));
    if (!isOurs) return;
    const reason = "blocked-by-policy";
    if (this.#state.name === "connecting") this.#lost({ reason });
    else if (this.#state.name === "waiting") this.#enter({ ...this.#state, reason });
  }

  /**
   * Give up a connection that has ended, or that counts as dead.
   * @param {{ code?: number, reason?: string, error?: unknown }} why
   */
  #lost({ code, reason, error }) {
    if (code === 4500 || code === 4501) return this.#denied();
    this.#forgiveIfSteady();
    if (code !== undefined && code > 4501 && code <= 4999) {
      const mayReturn = this.#options.whoami && !this.#isSecondHandshake;
      this.#end({ name: "ended", code });
      if (code === ENDED_BY_SITE) void this.#askWhetherLoggedOut(mayReturn);
      return;
    }
    this.#abandon();
    if (code === RELAY_FULL) this.#attempts = Math.max(this.#attempts, RELAY_FULL_DOUBLINGS);
    // Wait between half and all of the delay, at random: all clients may have lost the relay at the same moment, and must
    // not come back at the same moment.
    const { firstDelay, longestDelay } = this.#options;
    const longest = globalThis.document?.hidden ? LONGEST_DELAY_HIDDEN : longestDelay;
    const delay = Math.min(firstDelay * 2 ** this.#attempts++, longest) * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => void this.#attempt(), delay);
    this.#enter({ name: "waiting", retryAt: performance.now() + delay, code, reason, error });
  }

  /**
   * Ask the website twice: the cookie may be valid until the logout is answered. After a logout in another browser it
   * stays valid.
   * @param {unknown} mayReturn  whether to connect once more if the website says both times that it is `user`
   */
  async #askWhetherLoggedOut(mayReturn) {
    const { signal } = this.#current;
    for (let look = 0; look < 2; ++look) {
      // connect() and close() clear the timer, which ends this.
      await new Promise((then) => (this.#timer = setTimeout(then, ENDED_LOOK)));
      await this.check();
      if (signal.aborted) return;
    }
    if (!mayReturn) return;
    this.#timer = setTimeout(() => {
      this.#isSecondHandshake = true;
      this.connect();
    }, ONCE_MORE * (1 + Math.random()));
  }

  /** Forget earlier failures when a connection has lasted. */
  #forgiveIfSteady() {
    if (this.#connectedAt && performance.now() - this.#connectedAt > STEADY) {
      this.#attempts = 0;
      this.#isSecondHandshake = false;
    }
    this.#connectedAt = 0;
  }

  /** Stop without a connection and without a new attempt. @param {State} state */
  #end(state) {
    this.#abandon();
    this.#listeners.abort();
    this.#attempts = 0;
    this.#isSecondHandshake = false;
    this.#connectedAt = 0;
    this.#enter(state);
  }

  /** Drop the socket and its pending requests. */
  #abandon() {
    clearTimeout(this.#timer);
    this.#isChecking = false;
    this.#current.abort();
    this.#current = new AbortController();
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { answer, timer } of pending) {
      clearTimeout(timer);
      answer({ result: "unknown" });
    }
  }

  /** @param {State} state */
  #enter(state) {
    this.#state = state;
    this.dispatchEvent(new StateEvent(state));
  }

  // ---- The user -------------------------------------------------------------------------------

  /** @returns {Promise<UserID | null>} who is logged in, as the website says; `user` if the website is not to be asked */
  async #whoIsLoggedIn() {
    const { user, whoami } = this.#options;
    if (!whoami) return user;
    if (typeof whoami === "function") return whoami();
    const answer = await fetch(whoami, { cache: "no-store", signal: this.#current.signal });
    // A page for members answers other visitors with an error status, or redirects them to the login.
    const isLoginPage = answer.redirected && !answer.headers.get("Content-Type")?.includes("json");
    if (answer.status === 401 || answer.status === 403 || isLoginPage) return null;
    if (!answer.ok) throw this.#warn(`the answer of ${answer.url} has status ${answer.status}; ${EXPECTED}`);
    const text = await answer.text();
    let who;
    try {
      who = JSON.parse(text);
    } catch {
      throw this.#warn(`the answer of ${answer.url} is not JSON; ${EXPECTED}`);
    }
    const isUsable = who?.loggedin === false || (who?.loggedin === true && (who.uID ?? null) !== null);
    if (!isUsable) this.#warn(`the answer of ${answer.url} has no loggedin that is true or false, or no uID; ${EXPECTED}`);
    return who?.loggedin === true ? who.uID : null;
  }

  /**
   * Report a mistake of the website to its developer, once, in the console: visitors cannot do anything about it.
   * @param {string} what @returns {Error}
   */
  #warn(what) {
    if (!this.#hasWarned) console.warn(`chatrelay: ${what}. See "When nobody can log in" in docs/webserver.rst`);
    this.#hasWarned = true;
    return new Error(what);
  }

  /** @param {UserID | null | undefined} who @returns {boolean} */
  #isUser(who) {
    return (who ?? null) !== null && String(who) === String(this.#options.user);
  }

  /** @param {UserID | null | undefined} who  who is logged in instead @returns {State} */
  #loggedOut(who) {
    return { name: "logged-out", somebodyElse: who ?? undefined };
  }
}
