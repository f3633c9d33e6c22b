//! The words of an inline request, quoted as Redis quotes them.

use super::{ProtocolError, is_space};

/// Splits an inline request into its arguments, quotes and escapes as in `sdssplitargs`.
pub fn inline_args(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let unbalanced = || ProtocolError::new("unbalanced quotes in request");
    let end = line.iter().position(|b| *b == 0 || *b == b'\n').unwrap_or(line.len());
    let mut rest = &line[..end];
    let mut args = Vec::new();
    loop {
        while let [b, tail @ ..] = rest
            && is_space(*b)
        {
            rest = tail;
        }
        if rest.is_empty() {
            return Ok(args);
        }
        let (arg, tail) = inline_arg(rest).ok_or_else(unbalanced)?;
        args.push(arg);
        rest = tail;
    }
}

fn inline_arg(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut arg = Vec::new();
    loop {
        match rest {
            [] => return Some((arg, rest)),
            [b, ..] if is_space(*b) => return Some((arg, rest)),
            [b'"', tail @ ..] => return double_quoted(arg, tail),
            [b'\'', tail @ ..] => return single_quoted(arg, tail),
            [b, tail @ ..] => {
                arg.push(*b);
                rest = tail;
            }
        }
    }
}

/// After a closing quote there must be a space or nothing.
fn closed(arg: Vec<u8>, rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    match rest {
        [b, ..] if !is_space(*b) => None,
        _ => Some((arg, rest)),
    }
}

fn double_quoted(mut arg: Vec<u8>, mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let hex = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    loop {
        match rest {
            [] => return None,
            [b'"', tail @ ..] => return closed(arg, tail),
            [b'\\', b'x', a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                arg.push(hex(*a)? * 16 + hex(*b)?);
                rest = tail;
            }
            [b'\\', b, tail @ ..] => {
                arg.push(match b {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            [b, tail @ ..] => {
                arg.push(*b);
                rest = tail;
            }
        }
    }
}

fn single_quoted(mut arg: Vec<u8>, mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    loop {
        match rest {
            [] => return None,
            [b'\'', tail @ ..] => return closed(arg, tail),
            [b'\\', b'\'', tail @ ..] => {
                arg.push(b'\'');
                rest = tail;
            }
            [b, tail @ ..] => {
                arg.push(*b);
                rest = tail;
            }
        }
    }
}
