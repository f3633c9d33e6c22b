"""Tests that pass against a bare server and cannot pass through a proxy that shares connections, each with its reason.
docs/TESTED.md says the same in fewer words."""

MEMORY = "about the memory that the server keeps for the one connection of one client; sessions share theirs"
SLOWLOG = "the server's slow log names the connection that a command came by, and that is a shared one"
DEFAULT_OFF = (
    "switches off the user that the proxy is, and goes on in a database that the present user may not select "
    "(or finds it still switched off)"
)

FAKEREDIS_ACL = "test.test_mixins.test_acl_commands"

KNOWN = {
    ("unit/querybuf", "query buffer resized correctly"): MEMORY,
    ("unit/querybuf", "query buffer resized correctly when not idle"): MEMORY,
    ("unit/replybufsize", "verify reply buffer limits"): MEMORY,
    ("unit/slowlog", "SLOWLOG - logged entry sanity check"): SLOWLOG,
    ("unit/slowlog", "SLOWLOG - can clean older entries"): SLOWLOG,
    **{
        ("test/test_mixins/test_acl_commands.py", f"{FAKEREDIS_ACL}::{name}[Strict{protocol}]"): DEFAULT_OFF
        for name in ("test_auth", "test_acl_whoami", "test_acl_log_auth_exist")
        for protocol in (2, 3)
    },
}


def reason(unit, name):
    """Why it cannot pass; `None`: it must."""
    return KNOWN.get((unit, name))
