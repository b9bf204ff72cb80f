#!/bin/bash
# PHP: a session that is only read, with read_and_close, expires while it is used
#
# Guess:     Each page that calls session_start() counts as use of the session, so somebody who visits a page every minute
#            stays logged in.
# Behaviour: Garbage collection goes by the time of the session's file. session_start() sets it when the session is closed,
#            also where nothing has changed; with read_and_close, which the manual has for pages that change nothing, it does
#            not, and neither does session_abort().
# Matters:   After session.gc_maxlifetime (24 minutes) the session of somebody who loads such pages all the time is deleted.
#            Nothing in the page or in the session shows it beforehand.
# Seen:      session_start() + session_write_close(): kept
#            session_start() + session_abort(): collected
#            session_start(['read_and_close' => true]): collected
# Versions:  PHP 8.2.36 (Debian 12, php-cli)
# Checked:   2026-11-28
set -euo pipefail
command -v php >/dev/null || { echo "php is missing: apt install php-cli" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/visits.php" <<'PHP'
<?php
const OPTIONS = ['use_cookies' => false, 'cache_limiter' => ''];

function visit(string $id, string $way): void
{
    session_id($id);
    session_start(OPTIONS + ($way === 'read_and_close' ? ['read_and_close' => true] : []));
    if ($way === 'write_close') {
        session_write_close();
    } elseif ($way === 'abort') {
        session_abort();
    }
}

$ways = [
    'write_close' => ['session_start() + session_write_close()', true],
    'abort' => ['session_start() + session_abort()', false],
    'read_and_close' => ["session_start(['read_and_close' => true])", false],
];
foreach ($ways as $way => $_) {
    session_id(str_replace('_', '-', "visitor-$way"));
    session_start(OPTIONS);
    $_SESSION['user'] = 1;
    session_write_close();
    $file = session_save_path() . '/sess_' . session_id();
    touch($file, time() - 25 * 60); // logged in 25 minutes ago
    visit(session_id(), $way); // and here again now
}
session_id('somebody-else');
session_start(OPTIONS);
session_gc(); // sessions older than session.gc_maxlifetime, 1440 s
$changed = false;
foreach ($ways as $way => [$code, $expected]) {
    clearstatcache();
    $kept = is_file(session_save_path() . '/sess_' . str_replace('_', '-', "visitor-$way"));
    echo "$code: ", $kept ? 'kept' : 'collected', "\n";
    $changed = $changed || $kept !== $expected;
}
exit($changed ? 1 : 0);
PHP
mkdir "$folder/sessions"
timeout 60 php -d session.save_path="$folder/sessions" -d session.gc_maxlifetime=1440 -d session.gc_probability=0 \
    -d display_errors=stderr -d output_buffering=1 "$folder/visits.php" || { echo "The behaviour has changed." >&2; exit 1; }
