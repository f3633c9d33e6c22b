//! State of a connection that a session keeps: what has passed unlooked at, how the session is called there, and whether WAIT counts
//! its writes.

use std::cell::Cell;
use std::rc::Rc;

use crate::clients::Words;
use crate::command::EffectClass;
use crate::upstream::connection::Raw;

/// A word that a session says of itself in a transaction, and which.
pub(super) type Named = (fn(&mut Words) -> &mut String, String);

/// Whether WAIT on a raw connection would miss writes of its session.
pub(super) type Unmarked = Rc<Cell<bool>>;

/// Whether bytes that pass unlooked at have held what no invalidation announces: SWAPDB, or a change of rights.
#[derive(Default)]
pub(super) struct SwapSeen {
    seen: bool,
    /// The end of the last piece: the word SWAPDB may come in two.
    tail: Vec<u8>,
}

impl SwapSeen {
    /// A request whose plan is known is among the bytes.
    pub(super) fn note(&mut self, effect: EffectClass) {
        self.seen |= matches!(effect, EffectClass::Flush | EffectClass::Rights);
    }

    /// How this piece of bytes is to be passed on.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Raw {
        const WORD: &[u8] = b"swapdb";
        let mut text = std::mem::take(&mut self.tail);
        text.extend(bytes.iter().map(u8::to_ascii_lowercase));
        self.seen |= memchr::memmem::find(&text, WORD).is_some();
        self.tail = text.split_off(text.len().saturating_sub(WORD.len() - 1));
        if self.seen { Raw::Swapping } else { Raw::Acting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapdb_is_seen_in_any_case_and_however_it_is_cut() {
        let request = b"*3\r\n$6\r\nSwapDB\r\n$1\r\n0\r\n$1\r\n1\r\n";
        for cut in 0..request.len() {
            let mut seen = SwapSeen::default();
            seen.look(&request[..cut]);
            assert_eq!(seen.look(&request[cut..]), Raw::Swapping, "cut at {cut}");
        }
        let mut seen = SwapSeen::default();
        assert_eq!(seen.look(b"*1\r\n$4\r\nPING\r\n"), Raw::Acting);
        seen.note(EffectClass::Rights);
        assert_eq!(seen.look(b"*1\r\n$4\r\nPING\r\n"), Raw::Swapping, "for good");
    }
}
