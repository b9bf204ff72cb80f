// A site with users, and chat.mjs in it:
//
//     npm install express express-session
//     CHATRELAY_SECRET_FILE=… CHATRELAY_TOKEN_FILE=… node site.mjs 3000
import express from "express";
import session from "express-session";
import { addChat, endChat } from "./chat.mjs";

const app = express();
const sessions = session({ secret: process.env.SESSION_SECRET ?? "change me", resave: false, saveUninitialized: false });

addChat(app, sessions);
app.use(sessions);
app.use(express.urlencoded({ extended: false }));

app.get("/", (req, res) => res.send(`user ${req.session.userId ?? "nobody"}`));

app.post("/login", (req, res, next) => {
  const before = req.session.userId;
  const userId = Number(req.body.user); // your site checks a password first
  req.session.regenerate(async (error) => {
    if (error) return next(error);
    req.session.userId = userId;
    if (before !== undefined && before !== userId) await endChat(before);
    res.redirect("/");
  });
});

app.post("/logout", (req, res, next) => {
  const { userId } = req.session;
  req.session.destroy(async (error) => {
    if (error) return next(error);
    if (userId !== undefined) await endChat(userId);
    res.redirect("/");
  });
});

const server = app.listen(Number(process.argv[2] ?? 3000), "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}/`);
});
