"""Tests that pass against a bare server and cannot pass through a proxy that shares connections, each with its reason. README's section
on compatibility says the same in fewer words."""

MEMORY = "about the memory that the server keeps for the one connection of one client; sessions share theirs"
SLOWLOG = "the server's slow log names the connection that a command came by, and that is a shared one"

KNOWN = {
    ("unit/querybuf", "query buffer resized correctly"): MEMORY,
    ("unit/querybuf", "query buffer resized correctly when not idle"): MEMORY,
    ("unit/replybufsize", "verify reply buffer limits"): MEMORY,
    ("unit/slowlog", "SLOWLOG - logged entry sanity check"): SLOWLOG,
    ("unit/slowlog", "SLOWLOG - can clean older entries"): SLOWLOG,
}


def reason(unit, name):
    """Why it cannot pass; `None`: it must."""
    return KNOWN.get((unit, name))
