<?php
/* What the pages of this small site share. The relay does not need it, and a real site has its own. */
declare(strict_types=1);

const USERS = [
    'alice' => ['uID' => 1, 'password' => '$2y$10$yFhf7NHb0zgyuY36Et7io.9EYwEcY7aYh3.Aq.GJA43RevX4gaJVm'],
    'bo' => ['uID' => 2, 'password' => '$2y$10$Txjh5oKvR4UUomZNPkBam.o7.kiu6UHPDpkE0TLkoHyHxA5Z7n9AO'],
];

// Where browsers find the relay. The host name must be that of the site, or the browser does not send the session cookie.
define('RELAY', getenv('CHATRELAY_URL') ?: 'ws://127.0.0.1:8080/');

header("Content-Security-Policy: default-src 'none'; script-src 'self'; connect-src 'self' " . RELAY
    . "; form-action 'self'; base-uri 'none'; frame-ancestors 'none'");
header('X-Content-Type-Options: nosniff');
header('Referrer-Policy: same-origin');

/** Open the visitor's session. With $only_read it is closed at once, and does not hold up the visitor's other pages. */
function open_session(bool $only_read = false): void
{
    session_start([
        'read_and_close' => $only_read,
        'use_strict_mode' => true,
        'cookie_httponly' => true,
        'cookie_samesite' => 'Lax',
        'cookie_secure' => ($_SERVER['HTTPS'] ?? 'off') !== 'off',
    ]);
}

/** Refuse a form that was not made for this session: a page of another site may have sent it. */
function check_token(): void
{
    $token = $_POST['token'] ?? '';
    if (!isset($_SESSION['token']) || !is_string($token) || !hash_equals($_SESSION['token'], $token)) {
        http_response_code(403);
        exit('This form is out of date. Go back, load the page again and try once more.');
    }
}

function go_to(string $page): never
{
    header("Location: $page", true, 303);
    exit;
}

function html(string|int $text): string
{
    return htmlspecialchars((string) $text, ENT_QUOTES | ENT_SUBSTITUTE);
}
