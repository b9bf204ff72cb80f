<?php
/*
 * What chatrelay asks: whose session is this? Copy this file into your site, change the line with 'uID' in it to where
 * your site keeps its users' ids, and start the relay with --auth-url pointing here.
 *
 *     POST SESSID=…   ->   {"loggedin":true,"uID":…}   or   {"loggedin":false}
 */
declare(strict_types=1);

header('Content-Type: application/json');

// With a secret (the relay's --auth-secret-file), nobody but the relay gets an answer. Not 401 or 403: to the relay those
// mean "not logged in", and a mistyped secret would look like visitors who are; this one its operator is told of.
$secret = (string) getenv('CHATRELAY_SECRET');
if ($secret !== '' && !hash_equals("Bearer $secret", $_SERVER['HTTP_AUTHORIZATION'] ?? '')) {
    error_log('session.php: somebody asked without the right CHATRELAY_SECRET');
    http_response_code(400);
    exit;
}

$id = $_POST['SESSID'] ?? null;
if (!is_string($id)) {
    error_log('session.php: asked without a SESSID in a form; is the relay started with --auth-format json?');
    http_response_code(400);
    exit;
}
// PHP writes ids into cookies URL-encoded ("," as "%2C"), and the relay passes a cookie on as it came.
$id = rawurldecode($id);

$uID = null;
if (preg_match('/^[A-Za-z0-9,-]{1,256}$/D', $id) && session_is_kept($id)) {
    session_id($id);
    // Closed as soon as it is read: a session that is open holds up the visitor's other pages.
    if (!session_start(['read_and_close' => true, 'use_strict_mode' => true, 'use_cookies' => false, 'cache_limiter' => ''])) {
        http_response_code(500);
        exit;
    }
    // In strict mode an id that PHP does not know has been replaced by a new one.
    $uID = session_id() === $id ? $_SESSION['uID'] ?? null : null;
}
echo json_encode($uID === null ? ['loggedin' => false] : ['loggedin' => true, 'uID' => $uID]);

/** Whether there is such a session. Even in strict mode, PHP would leave an empty file for each unknown id it is asked about. */
function session_is_kept(string $id): bool
{
    if (ini_get('session.save_handler') !== 'files') {
        return true; // Redis and the like keep nothing that nobody wrote
    }
    $path = explode(';', session_save_path() ?: sys_get_temp_dir()); // "/path", "depth;/path" or "depth;mode;/path"
    $folders = count($path) > 1 ? str_split(substr($id, 0, (int) $path[0])) : [];
    return is_file(implode('/', [end($path), ...array_filter($folders, 'strlen'), "sess_$id"]));
}
