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
        end_chat($uID); // after the end of the session, or the chat could log in by it again
    }
    setcookie(session_name(), '', ['expires' => 1, 'path' => '/']);
}
go_to('index.php');
