# SPDX-License-Identifier: BSD-3-Clause
"""What each state of a replica allows: the table that the tests carry out, and mcbuf-states(7) prints.

It is taken from DESIGN.md, not from the code.  A cell is one word:

    ok        done; the state is what it was
    >STATE    done; the replica is in that column's state afterwards
    2, 3, 4   refused with that exit code ("code" in the reply); the state is what it was
    1         the tool says that it is not used that way, or the verb that it needs the secret
    EIO …     the request fails with that errno; the state is what it was
              (a fast zero that is "ok" may say ENOTSUP: then it is not fast, and nothing was done)
    none      there is no such export: it cannot be opened
    -         does not arise: there is no such epoch, checkpoint or connection
"""

# name: (the word that status shows, what it is)
STATES = {
    "syncing": ("syncing", "the first copy runs"),
    "closed": ("syncing", "a seal has closed the first copy"),
    "protected": ("protected", "there is a checkpoint, wholly written out"),
    "pending": ("protected", "write-out of checkpoints is pending, held up by an error of the backing image"),
    "sealed": ("protected", "there are sealed epochs that are not committed"),
    "resyncing": ("resyncing", "a new full copy runs; there is an old checkpoint"),
    "stale": ("stale", "a write was refused, so the stream has a hole"),
    "lost": ("stale", "acknowledged writes were lost"),
    "empty": ("stale", "there is no checkpoint"),
    "draining": ("promoted", "the backlog drains"),
    "drained": ("promoted", "the backing images are the disk"),
    "failed": ("failed", "the journal gave an error to this server"),
    "damaged": ("failed", "the server found damage in the journal when it started"),
}

# Requests that are alike share a row; each of them is carried out.
READS = "read, extents, cache"
CHANGES = "write, write FUA, zero, fast zero, trim"
TOGETHER = {"reads": READS, "changes": CHANGES, "writes": CHANGES + ", flush",
            "all": READS + ", " + CHANGES + ", flush"}

VERBS = """
event                         syncing    closed     protected  pending    sealed     resyncing  | stale      lost       empty      draining   drained    failed     damaged
seal                          >closed    ok         >sealed    ok         ok         ok         | 2          2          2          2          2          2          2
seal generation=CURRENT       >closed    ok         >sealed    ok         ok         ok         | 2          2          2          2          2          2          2
seal generation=OTHER         2          2          2          2          2          2          | 2          2          2          2          2          2          2
commit                        >protected >protected ok         ok         >protected >protected | 2          2          2          2          2          2          2
commit generation=CURRENT     >protected >protected ok         ok         >protected >protected | 2          2          2          2          2          2          2
commit generation=OTHER       2          2          2          2          2          2          | 2          2          2          2          2          2          2
commit epoch=SEALED           -          >protected -          -          ok         -          | -          -          -          -          -          -          -
commit epoch=OPEN             2          2          2          2          2          2          | 2          2          2          2          2          2          2
commit epoch=COMMITTED        -          -          ok         ok         ok         ok         | ok         ok         -          2          2          2          2
commit epoch=DISCARDED        -          -          -          -          -          2          | -          2          -          2          2          -          -
status                        ok         ok         ok         ok         ok         ok         | ok         ok         ok         ok         ok         ok         ok
list                          ok         ok         ok         ok         ok         ok         | ok         ok         ok         ok         ok         ok         ok
promote                       3          3          >drained   >draining  >drained   >drained   | >drained   >drained   3          ok         ok         2          2
promote to=LAST               3          3          >drained   >draining  >drained   >drained   | >drained   >drained   3          ok         ok         2          2
promote to=OLDER              -          -          -          >draining  -          -          | -          -          -          2          2          -          -
promote to=UNKNOWN            3          3          2          2          2          2          | 2          2          3          2          2          2          2
promote scratch               3          3          2          2          2          2          | 2          2          3          ok         ok         2          2
promote scratch (written)     -          -          >drained   >draining  >drained   >drained   | 2          >drained   -          -          -          -          -
resync                        2          2          >resyncing >resyncing >resyncing ok         | >resyncing >resyncing 2          2          2          2          2
resync overwrite              ok         >syncing   >syncing   >syncing   >syncing   >syncing   | >syncing   >syncing   >syncing   >syncing   >syncing   >syncing   >syncing
reset NAME@scratch            2          2          ok         ok         ok         ok         | ok         ok         2          2          2          2          2
divergence                    ok         ok         ok         ok         ok         ok         | ok         ok         ok         ok         ok         ok         ok
shutdown                      ok         ok         ok         ok         ok         ok         | ok         ok         ok         ok         ok         ok         ok
by NBD: promote               2          2          2          2          2          2          | 2          2          2          2          2          2          2
by NBD: reset NAME@scratch    2          2          2          2          2          2          | 2          2          2          2          2          2          2
by NBD: divergence            2          2          2          2          2          2          | 2          2          2          2          2          2          2
by NBD: shutdown              2          2          2          2          2          2          | 2          2          2          2          2          2          2
without secret: seal          1          1          1          1          1          1          | 1          1          1          1          1          1          1
without secret: commit        1          1          1          1          1          1          | 1          1          1          1          1          1          1
"""

DATA = """
event                         syncing    closed     protected  pending    sealed     resyncing  | stale      lost       empty      draining   drained    failed     damaged
NAME: reads                   ok         ok         ok         ok         ok         ok         | ok         EIO        EIO        ESHUTDOWN  ESHUTDOWN  EIO        EIO
NAME: writes                  ok         ok         ok         ok         ok         ok         | EIO        EIO        EIO        ESHUTDOWN  ESHUTDOWN  EIO        EIO
old connection: reads         ok         ok         ok         ok         ok         ok         | ok         -          -          ESHUTDOWN  ESHUTDOWN  EIO        -
old connection: writes        ok         ok         ok         ok         ok         ok         | EIO        -          -          ESHUTDOWN  ESHUTDOWN  EIO        -
NAME@gCURRENT: reads          ok         ok         ok         ok         ok         ok         | ok         EIO        EIO        ESHUTDOWN  ESHUTDOWN  EIO        EIO
NAME@gCURRENT: writes         ok         ok         ok         ok         ok         ok         | EIO        EIO        EIO        ESHUTDOWN  ESHUTDOWN  EIO        EIO
NAME@gOTHER: all              ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  | ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN
NAME@promoted: all            none       none       none       none       none       none       | none       none       none       ok         ok         none       none
NAME@latest: reads            none       none       ok         ok         ok         ok         | ok         ok         none       none       none       none       none
NAME@latest: changes          none       none       EPERM      EPERM      EPERM      EPERM      | EPERM      EPERM      none       none       none       none       none
NAME@latest: flush            none       none       ok         ok         ok         ok         | ok         ok         none       none       none       none       none
NAME@LAST: reads              -          -          ok         ok         ok         ok         | ok         ok         -          none       none       none       none
NAME@LAST: changes            -          -          EPERM      EPERM      EPERM      EPERM      | EPERM      EPERM      -          none       none       none       none
NAME@LAST: flush              -          -          ok         ok         ok         ok         | ok         ok         -          none       none       none       none
NAME@OLDER: reads             -          -          -          ok         -          -          | -          -          -          -          -          -          -
NAME@OLDER: changes           -          -          -          EPERM      -          -          | -          -          -          -          -          -          -
NAME@OLDER: flush             -          -          -          ok         -          -          | -          -          -          -          -          -          -
NAME@UNKNOWN: read            none       none       none       none       none       none       | none       none       none       none       none       none       none
NAME@scratch: all             none       none       ok         ok         ok         ok         | ok         ok         none       none       none       none       none
NAME@divergence: reads        none       none       none       none       none       none       | none       none       none       ok         ok         none       none
NAME@divergence: changes      none       none       none       none       none       none       | none       none       none       EPERM      EPERM      none       none
NAME@divergence: flush        none       none       none       none       none       none       | none       none       none       ok         ok         none       none
promote, old conn.: each      -          -          ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  | ESHUTDOWN  ESHUTDOWN  -          ESHUTDOWN  ESHUTDOWN  -          -
failure, old conn.: each      EIO        EIO        EIO        EIO        EIO        EIO        | -          -          -          EIO        ESHUTDOWN  -          -
resync, old conn.: each       -          -          ok         ok         ok         ok         | ESHUTDOWN  ESHUTDOWN  -          -          -          -          -
overwrite, old conn.: each    ok         ok         ok         ok         ok         ok         | ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN  ESHUTDOWN
"""

# What the server finds when it starts again; and the tools, with a server and without.
ENDS = """
event                         syncing    closed     protected  pending    sealed     resyncing  | stale      lost       empty      draining   drained    failed     damaged
restart                       ok         ok         ok         ok         ok         ok         | >lost      ok         ok         ok         ok         >lost      ok
crash                         ok         ok         ok         ok         ok         ok         | >lost      ok         ok         ok         ok         >lost      ok
reboot                        >empty     >empty     >lost      >lost      >lost      >lost      | >lost      ok         ok         ok         ok         >lost      ok
restart, reboot               ok         ok         ok         ok         ok         ok         | >lost      ok         ok         ok         ok         >lost      ok
restart, write, reboot        >empty     >empty     >lost      >lost      >lost      >lost      | -          -          -          -          -          -          -
crash, reboot                 >empty     >empty     >lost      >lost      >lost      >lost      | >lost      ok         ok         ok         ok         >lost      ok
recover                       3          3          >drained   >draining  >drained   >drained   | >drained   >drained   3          ok         ok         2          2
recover --wait                3          3          >drained   >drained   >drained   >drained   | >drained   >drained   3          >drained   ok         2          2
recover --list                3          3          ok         ok         ok         ok         | ok         ok         3          ok         ok         ok         ok
recover --dry-run             3          3          ok         ok         ok         ok         | ok         ok         3          ok         ok         2          2
recover --verify              1          1          1          1          1          1          | 1          1          1          1          1          1          1
restart, recover              3          3          >drained   >drained   >drained   >drained   | >drained   >drained   3          >drained   ok         >drained   4
crash, recover                3          3          >drained   >drained   >drained   >drained   | >drained   >drained   3          >drained   ok         >drained   4
crash, recover --wait         3          3          >drained   >drained   >drained   >drained   | >drained   >drained   3          >drained   ok         >drained   4
reboot, recover               3          3          >drained   >drained   >drained   >drained   | >drained   >drained   3          >drained   ok         >drained   4
crash, recover --to=OLDER     -          -          -          >drained   -          -          | -          -          -          2          2          -          -
crash, recover --to=UNKNOWN   3          3          2          2          2          2          | 2          2          3          2          2          2          4
crash, recover --list         3          3          ok         ok         ok         ok         | ok         ok         3          ok         ok         ok         ok
crash, recover --dry-run      3          3          ok         ok         ok         ok         | ok         ok         3          ok         ok         ok         4
crash, recover --verify       3          3          ok         ok         ok         ok         | ok         ok         3          ok         ok         ok         4
"""


def parse(text):
    """{event: {state: cell}}, in order."""
    rows = [line for line in text.splitlines() if line.strip()]
    at = rows[0].index("syncing")
    states = rows[0][at:].replace("|", " ").split()
    assert states == list(STATES), states
    table = {}
    for row in rows[1:]:
        event = row[:at].strip()
        cells = row[at:].replace("|", " ").split()
        assert len(cells) == len(states), row
        export, colon, requests = event.partition(": ")
        for request in TOGETHER.get(requests, requests).split(", "):
            assert export + colon + request not in table, row
            table[export + colon + request] = dict(zip(states, cells))
    return table


def render(table, marks=None, states=tuple(STATES), width=10, first=30):
    """The table as text; MARKS: {(event, state): a sign put behind its cell}."""
    lines = ["event".ljust(first) + " ".join(s.ljust(width) for s in states).rstrip()]
    for event, row in table.items():
        cells = [(row[s] + (marks or {}).get((event, s), "")).ljust(width) for s in states]
        lines.append((event.ljust(first) + " ".join(cells)).rstrip())
    return "\n".join(lines) + "\n"


# --- For the manual page -------------------------------------------------------

GROUPS = (("syncing", "closed", "empty"), ("protected", "pending", "sealed", "resyncing"),
          ("stale", "lost", "failed", "damaged"), ("draining", "drained"))
# Those that an export takes in part are said by the same words.
WORDS = dict({requests: word for word, requests in TOGETHER.items()},
             **{READS + ", flush": "reads, flush", "read, write": "all", "read": "reads", "write": "writes", "each": "all"})


def merged(table, states):
    """Requests of one export that have the same cells share a row; rows that do not arise are left out."""
    rows = {}
    for event, row in table.items():
        cells = tuple(row[s] for s in states)
        if set(cells) == {"-"}:
            continue
        export, colon, op = event.partition(": ")
        if not colon or export in ("by NBD", "without secret"):
            export, op = event, ""
        rows.setdefault((export, cells), []).append(op)
    return {e + (": " + WORDS[", ".join(ops)] if ops[0] else ""): dict(zip(states, cells))
            for (e, cells), ops in rows.items()}


def pages():
    """The blocks of mcbuf-states(7), in order."""
    for text in (VERBS, DATA, ENDS):
        for states in GROUPS:
            table = render(merged(parse(text), states), states=states)
            yield "".join(" " + line + "\n" for line in table.splitlines())


if __name__ == "__main__":
    print("\n".join(pages()), end="")
