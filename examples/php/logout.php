<?php
declare(strict_types=1);
require __DIR__ . '/site.php';
require __DIR__ . '/end_chat.php';

if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    open_session();
    check_token();
    $uID = $_SESSION['uID'] ?? null;
    $_SESSION = [];
    session_destroy();
    if ($uID !== null) {
        end_chat($uID); // after the session, or the chat could come back by it
    }
    setcookie(session_name(), '', ['expires' => 1, 'path' => '/']);
}
go_to('index.php');
