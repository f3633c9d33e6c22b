//! Numbers of one width taken for another, where that loses nothing or is meant to. `as` says neither.

/// nearside runs where a pointer has 64 bits, so that a hash fits an index.
const _: () = assert!(usize::BITS == u64::BITS);

/// A hash or a count as an index.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both have 64 bits")]
pub const fn index(n: u64) -> usize {
    n as usize
}

/// The lower half of a hash.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a half is enough to tell two apart, or is compared again")]
pub const fn low_half(hash: u64) -> u32 {
    hash as u32
}

/// A count of things in memory, which is never negative nor above 2^63, as a difference.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "memory has no 2^63 bytes")]
pub const fn difference(n: usize) -> i64 {
    n as i64
}

/// A sum that should not be negative: what is below zero counts as nothing.
#[inline(always)]
pub const fn at_least_zero(n: i64) -> u64 {
    if n < 0 { 0 } else { n.cast_unsigned() }
}
