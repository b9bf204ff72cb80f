// The least a page needs to talk to chatrelay; chatrelay/static/chatrelay.js reconnects by itself, and more.
const form = document.getElementById("chat");
const button = form.querySelector("button");
const nameOf = new Map(Array.from(form.elements.to.options, (option) => [option.value, option.text]));
const waiting = new Map(); // id of a message on its way -> its line on the page
let lastID = 0;

function say(text) {
  document.getElementById("state").textContent = text;
}

function addLine(text) {
  const line = document.createElement("li");
  line.textContent = text; // never innerHTML: strangers write this
  document.getElementById("messages").append(line);
  return line;
}

const socket = new WebSocket(form.dataset.relay);

// Without a SESSID the relay takes the site's session cookie, which this script can't and need not see.
socket.onopen = () => socket.send(JSON.stringify({ type: "auth-request" }));

socket.onmessage = (event) => {
  const frame = JSON.parse(event.data);
  if (frame.type === "auth-response") {
    button.disabled = !frame.response;
    say(frame.response ? "Connected." : `Not logged in (${frame.reason ?? "log in at this site again"}).`);
  } else if (frame.type === "message") {
    const from = String(frame.message.fromuID);
    addLine(`${nameOf.get(from) ?? from}: ${frame.message.content}`);
  } else if (frame.type === "send-request-response") {
    const line = waiting.get(frame.response.id);
    waiting.delete(frame.response.id);
    line.append(frame.response.value ? " ✓" : ` – not delivered: ${frame.response.reason}`);
  } else if (frame.type === "error") {
    say(`The relay did not understand this page: ${frame.detail}`);
  }
};

socket.onclose = (event) => {
  button.disabled = true;
  say(`The connection has ended (${event.code}). Load the page again.`);
};

form.onsubmit = (event) => {
  event.preventDefault();
  const id = String(++lastID);
  const touID = form.elements.to.value;
  const content = form.elements.content.value;
  waiting.set(id, addLine(`to ${nameOf.get(touID)}: ${content}`));
  socket.send(
    JSON.stringify({ type: "message-send-request", id, message: { timeStamp: new Date().toISOString(), touID, content } }),
  );
  form.elements.content.value = "";
};
