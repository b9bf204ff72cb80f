// What chatrelay needs of an Express site with express-session. Copy this file into your site. It needs Node 18 or newer.
//
//     twistd -n chatrelay --auth-url http://127.0.0.1:3000/session --auth-secret-file SECRET_FILE \
//         --session-cookie connect.sid --origin https://example.com \
//         --ops-listen tcp:8081 --ops-token-file TOKEN_FILE
import { timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import express from "express";

function read(file) {
  const line = readFileSync(file, "ascii").trim();
  if (!/^[\x21-\x7e]+$/.test(line)) throw new Error(`${file} has to hold one line of ASCII without spaces`);
  return line;
}

const SECRET = read(process.env.CHATRELAY_SECRET_FILE); // the relay's --auth-secret-file
const TOKEN = read(process.env.CHATRELAY_TOKEN_FILE); // the relay's --ops-token-file
const OPS = process.env.CHATRELAY_OPS ?? "http://127.0.0.1:8081"; // the relay's --ops-listen

/**
 * Add the session page, which the relay asks, and /whoami, which pages ask. Call it before app.use(sessions), because
 * express-session looks for a session only once in each request.
 *
 * @param sessions  what session({ … }) returned, with resave and saveUninitialized false, or unknown ids would be stored
 * @param uidOf  gives the user's id from req.session, or undefined if nobody is logged in
 */
export function addChat(app, sessions, uidOf = (session) => session.userId) {
  const whose = (req, res) => {
    const uID = uidOf(req.session);
    res.json(uID === undefined ? { loggedin: false } : { loggedin: true, uID });
  };
  app.post("/session", relayOnly, express.urlencoded({ extended: false }), asCookie, sessions, whose);
  app.get("/whoami", sessions, whose);
}

// The status is not 401 or 403, because the relay takes those for "not logged in", and a wrong secret would go unnoticed.
function relayOnly(req, res, next) {
  const given = Buffer.from(req.get("Authorization") ?? "");
  const wanted = Buffer.from(`Bearer ${SECRET}`);
  if (given.length === wanted.length && timingSafeEqual(given, wanted)) return next();
  res.status(400).send("not the relay: the secret is missing or wrong");
}

// The relay posts the value of the cookie unchanged, encoded and signed. express-session decodes and checks it.
function asCookie(req, res, next) {
  if (typeof req.body?.SESSID !== "string") return res.status(400).send("there is no SESSID in a form");
  req.headers.cookie = `connect.sid=${req.body.SESSID}`; // or the name that you gave express-session
  next();
}

/** End the chat of a user who has logged out, in every browser. If that fails, log it and let the logout continue. */
export async function endChat(uID) {
  try {
    const answer = await fetch(`${OPS}/v1/revoke`, {
      method: "POST",
      headers: { Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json" },
      body: JSON.stringify({ uID }),
      signal: AbortSignal.timeout(2000),
    });
    if (!answer.ok) throw new Error(`the relay answered ${answer.status}: ${await answer.text()}`);
  } catch (error) {
    console.error(`could not end the chat of user ${uID}:`, error);
  }
}
