<?php
declare(strict_types=1);
require __DIR__ . '/site.php';
require __DIR__ . '/end_chat.php';

open_session();
$failed = false;
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    check_token();
    session_write_close(); // checking a password takes time, and the visitor's other pages need not wait
    $name = $_POST['name'] ?? '';
    $password = $_POST['password'] ?? '';
    $user = is_string($name) ? USERS[$name] ?? null : null;
    if ($user !== null && is_string($password) && password_verify($password, $user['password'])) {
        open_session();
        $before = $_SESSION['uID'] ?? null;
        session_regenerate_id(true); // otherwise, somebody who planted the id before the login would be logged in, too
        $_SESSION = ['uID' => $user['uID'], 'name' => $name, 'token' => bin2hex(random_bytes(16))];
        session_write_close();
        if ($before !== null && $before !== $user['uID']) {
            end_chat($before); // pages that are open in this browser must not continue as another user
        }
        go_to('index.php');
    }
    $failed = true;
    http_response_code(422);
} else {
    $_SESSION['token'] ??= bin2hex(random_bytes(16));
    session_write_close();
}
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Log in</title>
<h1>Log in</h1>
<?php if ($failed): ?>
<p role="alert">No user of that name has that password.</p>
<?php endif ?>
<form method="post">
  <input type="hidden" name="token" value="<?= html($_SESSION['token']) ?>">
  <p><label>Name <input name="name" autocomplete="username" required autofocus></label>
  <p><label>Password <input name="password" type="password" autocomplete="current-password" required></label>
  <p><button>Log in</button>
</form>
<p>There are alice and bo; each one's password is the name.
</html>
