<?php
declare(strict_types=1);
require __DIR__ . '/site.php';

if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    open_session();
    check_token();
    $_SESSION = [];
    session_destroy();
    setcookie(session_name(), '', ['expires' => 1, 'path' => '/']);
}
go_to('index.php');
