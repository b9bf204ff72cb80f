/**
 * What the page says to its reader.
 *
 * Plain functions give a sentence and a remedy for the reasons and close codes of the relay (docs/protocol.rst). Nothing
 * here knows the document, the connection or the conversations.
 */

/** @import { State } from "./chatrelay.js" */
/** @import { Line } from "./conversations.js" */

/**
 * Say why a message was refused, and whether another try can help.
 * @param {string} reason
 * @param {string} name  the recipient's
 * @returns {{ text: string, again: boolean }}
 */
function refusal(reason, name) {
  switch (reason) {
    case "receiving-user-not-connected":
      return { text: `${name} isn’t online right now – not delivered.`, again: true };
    case "log-unavailable":
      return { text: "Not delivered: messages can’t be stored at the moment. Try again in a while.", again: true };
    case "busy":
      return { text: "Not delivered: the chat is very busy. Try again in a moment.", again: true };
    case "delivery-unconfirmed":
      return { text: `Stored, but it isn’t certain that it reached ${name}.`, again: true };
    case "invalid-message":
      return { text: "Not delivered: the chat can’t carry this message.", again: false };
    default:
      return { text: `Not delivered (${reason}).`, again: true };
  }
}

/** @param {string} [reason]  why a message waits */
function whenItIsSent(reason) {
  if (reason === "rate-limited") return "you write faster than the chat allows. It will be sent in a moment.";
  if (reason === "logged-out") return "it can be sent when you are logged in again.";
  return "it will be sent when you are connected again.";
}

const NAMES = new Intl.ListFormat("en");

/**
 * Say that messages were not sent before the page was left.
 * @param {string[]} names  to whom, one for each message
 */
export function leftUnsent(names) {
  const to = NAMES.format(new Set(names));
  return names.length === 1
    ? `A message to ${to} has not been sent yet.`
    : `${names.length} messages to ${to} have not been sent yet.`;
}

/**
 * Give the text under a message, and what the reader can do about it.
 * @param {Line} line
 * @param {string} name  the other person's
 * @returns {{ text: string, tone: "" | "good" | "bad" | "open", again?: string, discard?: string }}
 */
export function lineStatus(line, name) {
  switch (line.status) {
    case "received":
      return { text: "", tone: "" };
    case "sending":
      return { text: "Sending…", tone: "" };
    case "delivered":
      return { text: "Delivered", tone: "good" };
    case "waiting":
      return { text: `Not sent yet – ${whenItIsSent(line.reason)}`, tone: "open", discard: "Don’t send" };
    case "kept":
      return { text: "Not sent.", tone: "bad", again: "Send now", discard: "Discard" };
    case "unknown":
      return { text: "No answer – it may or may not have arrived.", tone: "open", again: "Send again" };
    case "refused": {
      const { text, again } = refusal(line.reason ?? "", name);
      return { text, tone: "bad", again: again ? "Try again" : undefined, discard: "Discard" };
    }
  }
}

/**
 * Describe the connection in one word, for the corner of the page.
 * @param {State} state
 */
export function connectionPill(state) {
  switch (state.name) {
    case "connecting":
      return "Connecting…";
    case "connected":
      return "Connected";
    case "waiting":
      return "Reconnecting…";
    case "logged-out":
      return "Logged out";
    default:
      return "Disconnected";
  }
}

/** @param {{ code?: number, reason?: string }} why */
function whyWaiting({ code, reason }) {
  if (reason === "webserver-unavailable") return "The website can’t say who you are at the moment.";
  if (code === 4000) return "The chat is being restarted.";
  if (code === 4002) return "This connection was too slow.";
  if (code === 4003) return "The chat is full at the moment.";
  return "No connection to the chat.";
}

/** @param {number} code */
function whyEnded(code) {
  if (code === 4502) return "The chat could not understand this page. Reloading it may help.";
  if (code === 4503) return "The chat closed the connection: too many messages in too short a time.";
  if (code === 4504) return "You have the chat open in many other places, so it was disconnected here.";
  if (code === 4505) return "This site has ended your connection.";
  return `The chat closed the connection (code ${code}).`;
}

/**
 * Say what is wrong with the connection, and give the remedy. Null: nothing is wrong.
 * @param {State} state
 * @param {string | number | null} somebodyElse  the other user who has logged in with this browser meanwhile
 * @param {number} now  ms, as `performance.now()`
 * @returns {{ text: string, countdown?: string, remedy: string, action: "connect" | "load" } | null}
 */
export function trouble(state, somebodyElse, now) {
  if (somebodyElse !== null) {
    return {
      text: `This browser is now logged in as ${somebodyElse}.`,
      remedy: `Continue as ${somebodyElse}`,
      action: "load",
    };
  }
  switch (state.name) {
    case "waiting": {
      const seconds = Math.max(0, Math.ceil((state.retryAt - now) / 1000));
      return {
        text: whyWaiting(state),
        countdown: `Trying again in ${seconds} s.`,
        remedy: "Try now",
        action: "connect",
      };
    }
    case "logged-out":
      return { text: "You are logged out.", remedy: "Log in again", action: "load" };
    case "ended":
      return state.code === 4502
        ? { text: whyEnded(state.code), remedy: "Reload", action: "load" }
        : { text: whyEnded(state.code), remedy: "Connect here", action: "connect" };
    default:
      return null;
  }
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY_AND_TIME = new Intl.DateTimeFormat(undefined, {
  weekday: "short",
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

/** @param {number} at  ms @param {number} now  ms */
export function when(at, now) {
  const today = new Date(at).toDateString() === new Date(now).toDateString();
  return (today ? TIME : DAY_AND_TIME).format(at);
}
