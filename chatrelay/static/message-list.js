/**
 * The messages of the open conversation, each with its time and its status.
 *
 * Text of users gets into the document here, and only by `textContent`. The list stays at its end while the reader is
 * there, and does not move while the reader looks further up. The page decides what a button under a message does.
 */

/** @import { Conversation, Conversations, ConversationEvent, Line } from "./conversations.js" */

import { make } from "./people-list.js";
import { lineStatus, when } from "./words.js";

/** @typedef {(conversation: Conversation, line: Line) => void} Action */

/** A reader within this many pixels of the end counts as being there. */
const MAX_PIXELS_FROM_END = 60;

export class MessageList {
  /** @type {Map<Line, HTMLElement>} */
  #items = new Map();
  /** @type {Conversation | null} */
  #open = null;
  #scroll;
  #list;
  #newer;
  #actions;
  /** Whether the reader is at the end, and so wants to see what is added there. */
  #following = true;

  /**
   * @param {{ scroll: HTMLElement, list: HTMLElement, newer: HTMLElement }} elements
   * @param {Conversations} conversations
   * @param {{ again: Action, discard: Action }} actions  what the buttons under a message do
   */
  constructor({ scroll, list, newer }, conversations, actions) {
    this.#scroll = scroll;
    this.#list = list;
    this.#newer = newer;
    this.#actions = actions;
    for (const type of ["added", "changed", "removed"]) {
      conversations.addEventListener(type, (event) => this.#update(/** @type {ConversationEvent} */ (event)));
    }
    newer.addEventListener("click", () => this.#toEnd());
    scroll.addEventListener("scroll", () => {
      this.#following = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < MAX_PIXELS_FROM_END;
      if (this.#following) newer.hidden = true;
    });
    // When the composer grows or the phone's keyboard opens, a reader who was at the end stays there.
    new ResizeObserver(() => {
      if (this.#following) this.#toEnd();
    }).observe(scroll);
  }

  /** @param {Conversation | null} conversation */
  open(conversation) {
    this.#open = conversation;
    this.#items.clear();
    this.#list.replaceChildren();
    for (const line of conversation?.lines ?? []) this.#list.append(this.#draw(line));
    this.#toEnd();
  }

  /** @param {ConversationEvent} event */
  #update({ type, conversation, line }) {
    if (conversation !== this.#open || !line) return;
    const item = this.#items.get(line);
    if (type === "added") {
      this.#list.append(this.#draw(line));
      if (line.status !== "received") this.#following = true;
      else if (!this.#following) this.#newer.hidden = false;
    } else if (type === "changed") {
      item?.replaceWith(this.#draw(line));
    } else {
      this.#items.delete(line);
      item?.remove();
    }
    if (this.#following) this.#toEnd();
  }

  #toEnd() {
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#following = true;
    this.#newer.hidden = true;
  }

  /** @param {Line} line */
  #draw(line) {
    const conversation = /** @type {Conversation} */ (this.#open);
    const mine = line.status !== "received";
    const status = lineStatus(line, conversation.person.name);

    const item = make("li", `line ${mine ? "mine" : "theirs"}`);
    item.dataset.status = line.status;
    item.append(make("span", "visually-hidden", mine ? "You: " : `${conversation.person.name}: `));
    const text = make("p", "text", line.content);
    text.dir = "auto";
    const below = make("p", "below");
    const time = document.createElement("time");
    time.dateTime = new Date(line.at).toISOString();
    time.textContent = when(line.at, Date.now());
    below.append(time);
    if (status.text) below.append(make("span", `status ${status.tone}`, status.text));
    if (status.again) below.append(this.#button(status.again, () => this.#actions.again(conversation, line)));
    if (status.discard) below.append(this.#button(status.discard, () => this.#actions.discard(conversation, line)));
    item.append(text, below);
    this.#items.set(line, item);
    return item;
  }

  /** @param {string} label @param {() => void} action */
  #button(label, action) {
    const button = make("button", "link", label);
    button.setAttribute("type", "button");
    button.addEventListener("click", action);
    return button;
  }
}
