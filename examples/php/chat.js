// The least that a page needs for a chat. chatrelay.js keeps the connection, and this script shows the messages.
import { ChatClient } from "./chatrelay.js";

const form = document.getElementById("chat");
const button = form.querySelector("button");
const nameOf = new Map(Array.from(form.elements.to.options, (option) => [option.value, option.text]));

const WORDS = {
  idle: "Not connected.",
  connecting: "Connecting …",
  connected: "Connected.",
  waiting: "No connection. It will be tried again.",
  "logged-out": "You are no longer logged in here. Load the page again.",
  ended: "The connection has ended. Load the page again.",
};

function addLine(text) {
  const line = document.createElement("li");
  line.textContent = text; // never innerHTML: other users write this
  document.getElementById("messages").append(line);
  return line;
}

// The user is the one for whom index.php made this page. Another user may log in in another tab; whoami.php says so.
const client = new ChatClient(form.dataset.relay, { user: form.dataset.user, whoami: "whoami.php" });

client.addEventListener("state", ({ state }) => {
  button.disabled = state.name !== "connected";
  document.getElementById("state").textContent = WORDS[state.name];
});

client.addEventListener("message", ({ message }) => {
  const from = String(message.fromuID);
  addLine(`${nameOf.get(from) ?? from}: ${message.content}`);
});

client.connect();

form.onsubmit = async (event) => {
  event.preventDefault();
  const touID = form.elements.to.value;
  const content = form.elements.content.value;
  form.elements.content.value = "";
  const line = addLine(`to ${nameOf.get(touID)}: ${content}`);
  const outcome = await client.send(touID, content);
  line.append(outcome.result === "delivered" ? " ✓" : ` – ${outcome.result} ${outcome.reason ?? ""}`);
};
