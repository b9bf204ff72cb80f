<?php
/* Tell the script of the chat page who is logged in with this browser now. Without a session, nobody is. */
declare(strict_types=1);
require __DIR__ . '/site.php';

if (isset($_COOKIE[session_name()])) {
    open_session(only_read: true);
}
header('Content-Type: application/json');
$uID = $_SESSION['uID'] ?? null;
echo json_encode($uID === null ? ['loggedin' => false] : ['loggedin' => true, 'uID' => $uID]);
