//! When a certificate is good. rustls looks at these dates of all certificates but the CAs that it is given.

use std::ops::ControlFlow;
use std::time::Duration;

use rustls::pki_types::UnixTime;

/// The first and the last second at which a certificate is good, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    from: u64,
    until: u64,
}

/// How a certificate stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// The certificate is not good yet.
    NotYet,
    /// The certificate is good, for this long.
    Good(Duration),
    /// The certificate is not good any more.
    Expired,
}

impl Validity {
    /// The dates of a certificate in DER; `None`: they cannot be read.
    pub fn of(certificate: &[u8]) -> Option<Validity> {
        let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
        let (SEQUENCE, mut signed, _) = element(certificate)? else { return None };
        if let Some((VERSION, _, rest)) = element(signed) {
            signed = rest;
        }
        // serial number, algorithm, issuer
        for _ in 0..3 {
            signed = element(signed)?.2;
        }
        let (SEQUENCE, dates, _) = element(signed)? else { return None };
        let (kind, from, dates) = element(dates)?;
        let from = seconds(kind, from)?;
        let (kind, until, _) = element(dates)?;
        Some(Validity { from, until: seconds(kind, until)? })
    }

    /// How the certificate stands at `now`.
    pub fn at(&self, now: UnixTime) -> CertificateState {
        let now = now.as_secs();
        if now < self.from {
            return CertificateState::NotYet;
        }
        self.until
            .checked_sub(now)
            .map_or(CertificateState::Expired, |left| CertificateState::Good(Duration::from_secs(left)))
    }
}

const SEQUENCE: u8 = 0x30;
/// `[0]`, which all but the oldest certificates begin with.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first element of DER: its kind, its content, and what is behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&kind, rest) = der.split_first()?;
    let (&short, mut rest) = rest.split_first()?;
    let mut length = usize::from(short);
    if short >= 0x80 {
        let (digits, behind) = rest.split_at_checked(usize::from(short & 0x7f)).filter(|(d, _)| d.len() <= 4)?;
        length = digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit));
        rest = behind;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    Some((kind, content, rest))
}

/// `YYMMDDhhmmssZ`, of which years below 50 are of this century, or `YYYYMMDDhhmmssZ`. Before 1970: 0.
fn seconds(kind: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let (year, rest) = match kind {
        UTC_TIME if digits.len() == 12 => {
            let short = number(&digits[..2])?;
            (if short < 50 { 2000 + short } else { 1900 + short }, &digits[2..])
        }
        GENERALIZED_TIME if digits.len() == 14 => (number(&digits[..4])?, &digits[4..]),
        _ => return None,
    };
    let part = |n: usize| number(&rest[2 * n..2 * n + 2]);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(u64::try_from(seconds).unwrap_or(0))
}

fn number(digits: &[u8]) -> Option<i64> {
    let sum = digits.iter().try_fold(0, |n, digit| match digit {
        b'0'..=b'9' => ControlFlow::Continue(n * 10 + i64::from(digit - b'0')),
        _ => ControlFlow::Break(()),
    });
    sum.continue_value()
}

/// Days since 1970 in the Gregorian calendar; a year is counted from March, so that a leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    365 * year + year / 4 - year / 100 + year / 400 + (153 * since_march + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_certificates_write_them() {
        assert_eq!(seconds(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, b"490228235959Z"), Some(2_498_169_599));
        assert_eq!(seconds(UTC_TIME, b"500101000000Z"), Some(0), "1950");
        assert_eq!(seconds(GENERALIZED_TIME, b"20240229123456Z"), Some(1_709_210_096));
        assert_eq!(seconds(GENERALIZED_TIME, b"99991231235959Z"), Some(253_402_300_799));
        for wrong in [&b"20241329123456Z"[..], b"2024022912345Z", b"20240229123456", b"2024022912345xZ", b"Z", b""] {
            assert_eq!(seconds(GENERALIZED_TIME, wrong), None, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_dates() {
        for wrong in
            [&b""[..], b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x00", b"\x30\x8f", b"\x02\x01\x00"]
        {
            assert_eq!(Validity::of(wrong), None);
        }
    }

    #[test]
    fn the_first_and_the_last_second_are_good() {
        let validity = Validity { from: 10, until: 20 };
        let at = |now| validity.at(UnixTime::since_unix_epoch(Duration::from_secs(now)));
        assert_eq!((at(9), at(21)), (CertificateState::NotYet, CertificateState::Expired));
        assert_eq!(
            (at(10), at(20)),
            (CertificateState::Good(Duration::from_secs(10)), CertificateState::Good(Duration::ZERO))
        );
    }
}
