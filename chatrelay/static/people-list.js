/**
 * The list of people: a link for each, with the last message and the number of unread ones.
 *
 * They are links so that the keyboard, history and "open in a new tab" of the browser work. The address after the # says
 * whose conversation is open. The list shows what `Conversations` has, and knows nothing of the connection.
 */

/** @import { Conversation, Conversations, Line, Person } from "./conversations.js" */

import { keyOf } from "./conversations.js";

/**
 * Draw the round letter that stands for a user, in their colour.
 * @param {HTMLElement} element
 * @param {Person} person
 */
export function drawAvatar(element, { name, tone }) {
  element.className = `avatar tone-${tone}`;
  element.textContent = Array.from(name)[0] ?? "?";
}

/** Give the fragment of the page's address while a conversation is open. @param {Conversation} conversation */
export const addressOf = ({ person }) => `#${encodeURIComponent(keyOf(person.uID))}`;

/**
 * @param {string} name  of the element
 * @param {string} className
 * @param {string} [text]
 */
export function make(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

/**
 * What stands before the last message, by its status.
 * @type {Record<Line["status"], { before: string, className: string }>}
 */
const PREVIEWS = {
  received: { before: "", className: "preview" },
  delivered: { before: "You: ", className: "preview" },
  sending: { before: "Sending: ", className: "preview" },
  waiting: { before: "Not sent yet: ", className: "preview open" },
  kept: { before: "Not sent: ", className: "preview bad" },
  refused: { before: "Not delivered: ", className: "preview bad" },
  unknown: { before: "No answer: ", className: "preview open" },
};

export class PeopleList {
  /** @type {Map<Conversation, HTMLAnchorElement>} */
  #links = new Map();
  #list;
  #conversations;
  /** @type {Conversation | null} */
  #open = null;

  /** @param {HTMLElement} list @param {Conversations} conversations */
  constructor(list, conversations) {
    this.#list = list;
    this.#conversations = conversations;
    for (const conversation of conversations.all) this.#draw(conversation);
    for (const type of ["added", "changed", "removed", "counted"]) {
      conversations.addEventListener(type, (event) => {
        this.#draw(/** @type {import("./conversations.js").ConversationEvent} */ (event).conversation);
      });
    }
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** @param {Conversation | null} conversation */
  open(conversation) {
    const before = this.#open;
    this.#open = conversation;
    if (before) this.#draw(before);
    if (conversation) this.#draw(conversation);
  }

  /** Focus the open conversation, or the first of the list. */
  focus() {
    const link = (this.#open && this.#links.get(this.#open)) ?? this.#list.querySelector("a");
    link?.focus();
  }

  /** @param {Conversation} conversation */
  #draw(conversation) {
    let link = this.#links.get(conversation);
    if (!link) {
      link = document.createElement("a");
      link.className = "person";
      link.href = addressOf(conversation);
      this.#links.set(conversation, link);
      const item = document.createElement("li");
      item.append(link);
      this.#list.append(item);
    }
    if (conversation === this.#open) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");

    const { person, lines, unread } = conversation;
    const avatar = make("span", "");
    drawAvatar(avatar, person);
    avatar.setAttribute("aria-hidden", "true");

    const myself = this.#conversations.isWithMyself(conversation);
    const words = make("span", "words");
    words.append(make("span", "name", myself ? `${person.name} (you)` : person.name));
    const last = lines.at(-1);
    if (last) {
      const { before, className } = PREVIEWS[last.status];
      const preview = make("span", className, before + last.content);
      preview.dir = "auto";
      words.append(preview);
    } else if (myself) {
      words.append(make("span", "preview", "Notes to yourself"));
    }
    link.replaceChildren(avatar, words);
    if (unread) {
      const badge = make("span", "badge", String(unread));
      badge.append(make("span", "visually-hidden", " unread"));
      link.append(badge);
    }
  }

  /** Go from one person to the next with the arrow keys. @param {KeyboardEvent} event */
  #walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const links = [...this.#links.values()];
    const at = links.indexOf(/** @type {HTMLAnchorElement} */ (document.activeElement));
    links[Math.min(Math.max(at + step, 0), links.length - 1)].focus();
    event.preventDefault();
  }
}
