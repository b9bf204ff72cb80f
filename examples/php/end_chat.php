<?php
/*
 * End a user's chat. Copy this file into your site. Call end_chat where the site logs a user out, and where another user
 * logs in with the same browser. Tell PHP in the environment where the relay's ops endpoint is:
 *
 *     CHATRELAY_OPS=http://127.0.0.1:8081    CHATRELAY_OPS_TOKEN_FILE=/etc/chatrelay/ops-token
 */
declare(strict_types=1);

/** Close all connections of a user, in every browser. If that fails, log it to PHP's error log and let the logout continue. */
function end_chat(string|int $uID): void
{
    $ops = (string) getenv('CHATRELAY_OPS');
    if ($ops === '') {
        return; // the relay finds out at the next re-check
    }
    $token = trim((string) @file_get_contents((string) getenv('CHATRELAY_OPS_TOKEN_FILE')));
    $answer = @file_get_contents("$ops/v1/revoke", false, stream_context_create(['http' => [
        'method' => 'POST',
        'header' => ["Authorization: Bearer $token", 'Content-Type: application/json'],
        'content' => json_encode(['uID' => $uID]),
        'timeout' => 2, // seconds: a relay that hangs must not stop the logout
        'follow_location' => 0,
        'ignore_errors' => true, // read the response of a relay that refuses, too: it says why
    ]]));
    if ($answer === false) {
        error_log("could not end the chat of user $uID: " . (error_get_last()['message'] ?? 'no answer'));
    } elseif (!str_contains($http_response_header[0], ' 200 ')) {
        error_log("could not end the chat of user $uID: $http_response_header[0]: $answer");
    }
}
