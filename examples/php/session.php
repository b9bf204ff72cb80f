<?php
/*
 * The session page: chatrelay asks it whose session an id is. Copy this file into your site. Change the line with 'uID' to
 * where your site keeps its users' ids. Start the relay with this page as --auth-url.
 *
 *     POST SESSID=…   ->   {"loggedin":true,"uID":…}   or   {"loggedin":false}
 */
declare(strict_types=1);

header('Content-Type: application/json');

// With a secret (the relay's --auth-secret-file), only the relay gets an answer. The status is not 401 or 403, because the
// relay takes those for "not logged in", and a mistyped secret would go unnoticed. The relay logs the status 400.
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
// PHP URL-encodes ids in cookies ("," as "%2C"), and the relay passes a cookie on unchanged.
$id = rawurldecode($id);

$uID = null;
if (preg_match('/^[A-Za-z0-9,-]{1,256}$/D', $id) && session_is_kept($id)) {
    session_id($id);
    // Close the session as soon as it is read: an open session holds up the visitor's other pages.
    if (!session_start(['read_and_close' => true, 'use_strict_mode' => true, 'use_cookies' => false, 'cache_limiter' => ''])) {
        http_response_code(500);
        exit;
    }
    // In strict mode PHP has replaced an id that it does not know by a new one.
    $uID = session_id() === $id ? $_SESSION['uID'] ?? null : null;
}
echo json_encode($uID === null ? ['loggedin' => false] : ['loggedin' => true, 'uID' => $uID]);

/** Say whether there is such a session. Even in strict mode, PHP would leave an empty file for each unknown id. */
function session_is_kept(string $id): bool
{
    if (ini_get('session.save_handler') !== 'files') {
        return true; // Redis and others keep nothing for an unknown id
    }
    $path = explode(';', session_save_path() ?: sys_get_temp_dir()); // "/path", "depth;/path" or "depth;mode;/path"
    $folders = count($path) > 1 ? str_split(substr($id, 0, (int) $path[0])) : [];
    return is_file(implode('/', [end($path), ...array_filter($folders, 'strlen'), "sess_$id"]));
}
