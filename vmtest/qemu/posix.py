"""What runs in the guest for the console channel, and how bytes are written so that a shell and a tty pass them.

Pure: no I/O. ``script`` and ``exit_of`` serve the QEMU guest agent's channel too.
"""

from __future__ import annotations

import binascii
import re
import shlex
import zlib

from vmtest.errors import UsageError
from vmtest.qemu.channel import Command, Exit

__all__ = [
    "BLOCK",
    "HELPER",
    "LOADER",
    "PIECE",
    "PLACES",
    "PROBE",
    "STOP",
    "cksum",
    "decoded",
    "exit_of",
    "octal",
    "script",
]

BLOCK = 32768
"""Bytes of output that are encoded and confirmed together."""

HELPER = r"""
t=$1 f=${0%/*}/$1 s=idle n=0 z=
exec 3<&0 2>/dev/null
trap : INT
say() { echo "<$t $* $t>"; echo "<$t $* $t>"; }
has() { type "$1" >/dev/null; }
size() { if [ -s "$1" ]; then set -- $(wc -c <"$1"); echo $1; else echo 0; fi; }
E=none S=
for e in hexdump od base64; do has $e && E=$e; done
for e in dd wc rm; do has $e || E=none; done
has setsid && S=setsid
case $E in base64) set --;; *) set -- -v -b;; esac
echo 'echo $$ >"${0%.c}.p"' >"$f.c"
say 0 ready $E ${S:-none}
while read -r q v w a b c; do
 case $v in
 p) [ ${#c} = "$b" ] && [ "$a" = $((n+1)) ] && printf "$c" >>"$f.$w" && n=$a
  say $q $n;;
 b) dd bs=4096 count=$a of="$f.$w"; say $q $(size "$f.$w");;
 x) if [ "$s" = idle ]; then
  i=/dev/null; s=run
  for p in "$f".64.*; do [ -f "$p" ] && base64 -d <"$p" >>"$f.i"; done
  [ -f "$f.i" ] && i=$f.i
  while read -r q v a; do case $v in
   kill|q) read -r p <"$f.p"; kill -9 -$p || kill -9 $p; say $q run;;
   '?') say $q run;;
  esac; done <&3 & k=$!
  $S sh "$f.c" <"$i" >"$f.o" 2>"$f.e" 3<&-
  s="done $? $(size "$f.o") $(size "$f.e")"
  kill -9 $k; wait $k
  fi; say $q $s;;
 g) x=$(dd if="$f.$w" bs=@BLOCK skip=$a count=1 | $E "$@") i=0
  set -f; IFS='
'
  for l in $x; do
   case $b in ''|*,$i,*) echo "<$t = $i $l $t>";; esac
   i=$((i+1))
  done
  unset IFS; set +f
  y=; has cksum && y=$(printf %s "$x" | cksum)
  say $q $i ${y%% *};;
 e) stty -echo && z=1; say $q ok;;
 '?'|kill) say $q $s;;
 '') [ "$q" ] && break;;
 *) break;;
 esac
done
[ $z ] && stty echo
rm -f "$f".*
[ "$v" = q ] && say $q bye
""".replace("@BLOCK", str(BLOCK))
# No single quote may be in it (it is typed inside of them), and no "!" (csh, bash's history). A line that does
# not begin with + ends it: STOP, or whatever is tried next.
LOADER = (
    'umask 077; for d in "${TMPDIR:-/tmp}" /tmp /run /dev/shm /var/tmp "${HOME:-/}" /; do '
    "d=$d/.vmtest-%s; mkdir $d && break; d=; done 2>/dev/null; "
    's() { echo "<"%s 0 $* %s">"; echo "<"%s 0 $* %s">"; }; s ${d:-none}; [ $d ] || exit; n=0; '
    "while IFS= read -r l; do case $l in +*) ;; *) break;; esac; n=$((n+${#l})); "
    'printf "%%s\\n" "${l#+}"; done >$d/h; s got $n'
)
PLACES = "$TMPDIR, /tmp, /run, /dev/shm, /var/tmp, $HOME, /"
STOP = "\x15 :"
"""Nothing to a shell, the end to the helper and the loader."""
PROBE = "\x15 echo '<'{0} up {0}'>' '<'{0} up {0}'>'"
"""Ctrl-U first, against what is typed already. The quotes keep its echo from looking like its answer."""
PIECE = 1500
"""Encoded bytes in a line that we type, about: the tty's canonical mode takes 4095."""
LITERAL = re.compile(rb"[^\x00-\x1f\x7f-\xff%\\'<]")
OCTAL = [bytes([i]) if LITERAL.match(bytes([i])) else b"\\%03o" % i for i in range(256)]
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def script(command: Command) -> str:
    """The lines of shell that make the command's directory and environment. Raises UsageError for what cannot be."""
    texts = [command.cwd, *command.argv, *command.env, *command.env.values()]
    if any("\0" in text for text in texts):
        raise UsageError("a command's arguments, variables and directory cannot hold a NUL byte")
    lines = [f"cd -- {shlex.quote(command.cwd)} >/dev/null || exit 126\n"] if command.cwd else []
    for name, value in command.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"a shell cannot set a variable named {name!r}", hint="use the agent as channel")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)


def exit_of(status: int) -> Exit:
    """A status as the shell tells it: 128 + N for a command that signal N ended."""
    return Exit(status, status - 128 if 128 < status <= 128 + 64 else None)


def octal(data: bytes) -> list[bytes]:
    """Pieces that a shell's printf turns into ``data``."""
    pieces, piece = [], []
    for i, byte in enumerate(data, 1):
        piece.append(OCTAL[byte])
        if len(piece) >= PIECE // 2 or i == len(data):
            # "read" strips spaces, and a leading "-" would be an option.
            piece[0], piece[-1] = (b"\\%03o" % end[0] if end in (b" ", b"-") else end for end in (piece[0], piece[-1]))
            pieces.append(b"".join(piece))
            piece = []
    return pieces


def decoded(decoder: str, lines: list[bytes]) -> bytes:
    """What was encoded. Raises ValueError where that cannot be."""
    if decoder == "base64":
        return binascii.a2b_base64(b"".join(lines), strict_mode=True)
    return b"".join(bytes(int(octal, 8) for octal in line.split()[1:]) for line in lines)


def cksum(data: bytes) -> int:
    """POSIX cksum: zlib's CRC with the order of the bits turned round, over the data and its length."""
    size = len(data).to_bytes((len(data).bit_length() + 7) // 8, "little")
    crc = zlib.crc32((data + size).translate(REVERSED), 0xFFFFFFFF)
    return int(f"{crc:032b}"[::-1], 2)
