//! Where chance comes from. With the feature `simulated` all of it follows from the thread's `fastrand::seed`, so that a
//! simulation can be repeated.

use std::collections::hash_map;
use std::hash::BuildHasher;

const SIMULATED: bool = cfg!(feature = "simulated");

/// Keys of a hash function, a secret of this process.
pub fn hash_keys() -> ahash::RandomState {
    if !SIMULATED {
        return ahash::RandomState::new();
    }
    let [a, b, c, d] = std::array::from_fn(|_| fastrand::u64(..));
    ahash::RandomState::with_seeds(a, b, c, d)
}

/// A number in (0, 1].
pub fn uniform() -> f64 {
    // A keyed hash with a new key each time is a random number.
    let bits = if SIMULATED { fastrand::u64(..) } else { hash_map::RandomState::new().hash_one(0) };
    ((bits >> 11) as f64 + 1.0) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_evenly_and_never_zero() {
        let all: Vec<f64> = (0..20_000).map(|_| uniform()).collect();
        assert!(all.iter().all(|n| *n > 0.0 && *n <= 1.0));
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    #[test]
    fn keys_differ() {
        assert_ne!(hash_keys().hash_one(1), hash_keys().hash_one(1));
    }
}
