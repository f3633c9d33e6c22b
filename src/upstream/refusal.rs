//! Which error replies prove that the server has done nothing of a command. The cache then has nothing to learn, and a
//! client who may not say a command cannot take from others, by saying it, what is cached.
//!
//! No proof are the errors that come while a command is done: `WRONGTYPE`, a number that is none (ZADD has perhaps added
//! members before it), `DEBUG RELOAD`'s, those of MIGRATE's target. Nor is any error of a script, which can say these very
//! words after it has written; nor `NOPERM` of a module's command, which may pass on what a command of its own was told.

/// Said before the command is looked up, or before it does anything: by the server's checks of the login, the rights, the
/// number of arguments, the transaction, the memory, the disk, the replicas, the role and the slot; and by the parsers of
/// options, which all read them to the end before anything is written.
const BEFORE: [&str; 20] = [
    "NOAUTH ",
    "NOPERM ",
    "EXECABORT ",
    "ERR unknown command",
    "ERR unknown subcommand",
    "ERR Unknown subcommand",
    "ERR wrong number of arguments for",
    "ERR syntax error",
    "LOADING ",
    "BUSY ",
    "MISCONF ",
    "OOM ",
    "READONLY ",
    "MASTERDOWN ",
    "NOREPLICAS ",
    "CLUSTERDOWN ",
    "MOVED ",
    "ASK ",
    "TRYAGAIN ",
    "CROSSSLOT ",
];

/// Other errors that refuse the commands which may change everything, before they change anything.
const BEFORE_FLUSH: [&str; 11] = [
    "ERR This instance has cluster support disabled",
    "ERR DEBUG command not allowed",
    "ERR invalid first DB index",
    "ERR invalid second DB index",
    "ERR DB index is out of range",
    "ERR value is not an integer or out of range",
    "ERR Invalid master port",
    "ERR Invalid primary port",
    "ERR FAILOVER requires connected replicas",
    "ERR FAILOVER is not valid when server is a replica",
    "ERR No failover in progress",
];

/// Other errors that refuse a change of rights as a whole.
const BEFORE_RIGHTS: [&str; 8] = [
    "ERR Error in ACL SETUSER modifier",
    "ERR Usernames can't contain",
    "ERR The 'default' user cannot be removed",
    "ERR This Redis instance is not configured to use an ACL file",
    "ERR This instance is not configured to use an ACL file",
    "ERR CONFIG SET failed",
    "ERR Unknown option or number of arguments for CONFIG SET",
    "ERR Unsupported CONFIG parameter",
];

/// Errors of commands that may be unknown to the table, or a module's, and have certainly not been done.
const BEFORE_UNKNOWN: [&str; 4] =
    ["NOAUTH ", "ERR unknown command", "ERR unknown subcommand", "ERR wrong number of arguments for"];

fn begins(reply: &[u8], errors: &[&str]) -> bool {
    let text = match reply {
        [b'-', text @ ..] => text,
        // RESP3's long form, which scripts alone bring about.
        _ => return false,
    };
    errors.iter().any(|error| text.starts_with(error.as_bytes()))
}

/// Whether the error proves that a command of the server's own was not done.
pub fn of_builtin(reply: &[u8]) -> bool {
    begins(reply, &BEFORE)
}

/// Whether the error proves that a command which may change everything was not done.
pub fn of_flush(reply: &[u8]) -> bool {
    begins(reply, &BEFORE) || begins(reply, &BEFORE_FLUSH)
}

/// Whether the error proves that a change of users, rights or passwords was not done.
pub fn of_rights(reply: &[u8]) -> bool {
    begins(reply, &BEFORE) || begins(reply, &BEFORE_RIGHTS)
}

/// Whether the error proves that a command which the table does not know, or a module's, was not done.
pub fn of_unknown(reply: &[u8]) -> bool {
    begins(reply, &BEFORE_UNKNOWN)
}

/// Whether the server, or a script in its place, says that the user may not.
pub fn names_rights(reply: &[u8]) -> bool {
    begins(reply, &["NOAUTH ", "NOPERM "])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_execution_proves_nothing() {
        for error in [
            "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
            "-ERR resulting score is not a number (NaN)\r\n",
            "-ERR value is not a valid float\r\n",
            "-ERR Error trying to load the RDB dump, check server logs.\r\n",
            "-ERR Target instance replied with error: NOAUTH Authentication required.\r\n",
            "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n",
            "-NOGROUP No such key\r\n",
            "-ERR nearside: upstream: the connection was lost\r\n",
            "+OK\r\n",
            "$9\r\nNOPERM xx\r\n",
        ] {
            let error = error.as_bytes();
            assert!(!of_builtin(error) && !of_flush(error) && !of_unknown(error), "{}", error.escape_ascii());
        }
    }

    #[test]
    fn a_refusal_proves_that_nothing_was_done() {
        let refused =
            |text: &str| [of_builtin(text.as_bytes()), of_flush(text.as_bytes()), of_unknown(text.as_bytes())];
        assert_eq!(refused("-NOPERM this user has no permissions to run the 'set' command\r\n"), [true, true, false]);
        assert_eq!(refused("-NOAUTH Authentication required.\r\n"), [true; 3]);
        assert_eq!(refused("-EXECABORT Transaction discarded because of previous errors.\r\n"), [true, true, false]);
        assert_eq!(refused("-ERR DB index is out of range\r\n"), [false, true, false]);
        assert!(names_rights(b"-NOPERM x\r\n") && !names_rights(b"-ERR x\r\n"));
    }
}
