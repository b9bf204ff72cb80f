<?php
declare(strict_types=1);
require __DIR__ . '/site.php';

// A visitor without a cookie needs no session to see this page.
if (isset($_COOKIE[session_name()])) {
    open_session(only_read: true);
}
if (!isset($_SESSION['uID'])) {
    go_to('login.php');
}
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Messages</title>
<h1>Messages</h1>
<form method="post" action="logout.php">
  You are <?= html($_SESSION['name']) ?>.
  <input type="hidden" name="token" value="<?= html($_SESSION['token']) ?>">
  <button>Log out</button>
</form>
<form id="chat" data-relay="<?= html(RELAY) ?>" data-user="<?= html($_SESSION['uID']) ?>">
  <p><label>To <select name="to">
<?php foreach (USERS as $name => $user): ?>
    <option value="<?= html($user['uID']) ?>"><?= html($name) ?></option>
<?php endforeach ?>
  </select></label>
  <label>Message <input name="content" maxlength="4000" autocomplete="off" required></label>
  <button disabled>Send</button>
</form>
<p id="state" role="status">Connecting …</p>
<ol id="messages" aria-live="polite"></ol>
<script src="chat.js" type="module"></script>
</html>
