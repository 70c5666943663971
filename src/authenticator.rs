//! What proves who somebody is: a mail address or a phone number that a code can be sent to. One person's
//! address has one canonical spelling, and codes go to that spelling, never to another that folds to it.

use crate::{
    address::Domain,
    error::{Error, Result},
    limits,
};

/// A mail address or phone number, as `mailto:…`, `tel:…` or bare.
///
/// Mail addresses are folded to lower case in full: no provider in use tells mailboxes apart by case, people
/// type theirs with and without capitals, and only ASCII is taken, so nothing else folds to the same letters.
/// Numbers lose the marks between their digits; `+49…` and `49…` stay two numbers, because nobody knows whose
/// country the second one means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticator {
    canonical: String,
    asked: String,
}

/// The longest part before the `@` of a mail address (RFC 5321).
const LOCAL_PART_BYTES_MAX: usize = 64;
/// Digits of a phone number: short numbers of a private exchange up to the bound of E.164.
const DIGITS: std::ops::RangeInclusive<usize> = 3..=15;

impl Authenticator {
    /// Reads any of the spellings.
    pub fn parse(text: &str) -> Result<Self> {
        let asked = text.trim();
        if asked.len() > limits::AUTHENTICATOR_BYTES_MAX {
            return Err(INVALID);
        }
        let canonical = match asked.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("mailto") => mail(rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("tel") => number(rest),
            None if asked.contains('@') => mail(asked),
            None => number(asked),
            Some(_) => None,
        };
        Ok(Self {
            canonical: canonical.ok_or(INVALID)?,
            asked: asked.to_owned(),
        })
    }

    /// The one spelling, with its scheme.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// As the person wrote it, without surrounding space.
    pub fn asked(&self) -> &str {
        &self.asked
    }

    /// The mail address, if it is one.
    pub fn mail_address(&self) -> Option<&str> {
        self.canonical.strip_prefix("mailto:")
    }
}

const INVALID: Error = Error::Invalid("authenticator");

fn mail(address: &str) -> Option<String> {
    let (local, domain) = address.rsplit_once('@')?;
    let atoms = |atom: &str| !atom.is_empty() && atom.bytes().all(is_atom);
    if local.len() > LOCAL_PART_BYTES_MAX || !local.split('.').all(atoms) {
        return None;
    }
    let domain = Domain::parse(domain).ok()?;
    Some(format!("mailto:{}@{domain}", local.to_ascii_lowercase()))
}

/// What RFC 5322 lets stand unquoted before the `@`.
fn is_atom(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

fn number(text: &str) -> Option<String> {
    let (plus, rest) = match text.trim_start().strip_prefix('+') {
        Some(rest) => ("+", rest),
        None => ("", text),
    };
    let digits: String = rest
        .chars()
        .filter(|c| !matches!(c, ' ' | '-' | '.' | '(' | ')'))
        .collect();
    let valid = DIGITS.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| format!("tel:{plus}{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    fn canonical(text: &str) -> Option<String> {
        Authenticator::parse(text).ok().map(|a| a.canonical)
    }

    #[test]
    fn every_spelling_of_one_mail_address_is_the_same_authenticator() {
        for spelling in [
            "alice@example.test",
            " alice@example.test ",
            "mailto:alice@example.test",
            "MAILTO:Alice@Example.TEST",
        ] {
            assert_eq!(
                canonical(spelling).as_deref(),
                Some("mailto:alice@example.test"),
                "{spelling}"
            );
        }
        assert_eq!(
            canonical("a.b+tag@x.test").as_deref(),
            Some("mailto:a.b+tag@x.test")
        );
    }

    #[test]
    fn every_spelling_of_one_number_is_the_same_authenticator() {
        for spelling in [
            "tel:+49 (30) 123-456",
            "+4930123456",
            "Tel:+49.30.123456",
            " +49 30 123456",
        ] {
            assert_eq!(
                canonical(spelling).as_deref(),
                Some("tel:+4930123456"),
                "{spelling}"
            );
        }
        assert_eq!(canonical("4930123456").as_deref(), Some("tel:4930123456"));
    }

    #[test]
    fn what_no_code_can_reach_is_refused() {
        let long = format!("{}@x.test", "a".repeat(65));
        for text in [
            "",
            "@",
            "alice",
            "alice@",
            "@x.test",
            "a@b@x.test",
            "a b@x.test",
            "a..b@x.test",
            ".a@x.test",
            "alice@x.test, eve@x.test",
            "<alice@x.test>",
            "alice@x.test\r\nBcc: eve@x.test",
            "älice@x.test",
            "alice@[127.0.0.1]",
            "alice@127.0.0.1",
            "mailto:alice@x.test?subject=x",
            "mailto:+4930123456",
            "tel:alice@x.test",
            "xmpp:alice@x.test",
            "tel:12",
            "+1234567890123456",
            "++4930123456",
            "+49x30",
            &long,
        ] {
            assert_eq!(canonical(text), None, "{text:?} passed");
        }
    }

    #[test]
    fn the_spelling_that_was_asked_for_is_kept_beside() {
        let authenticator = Authenticator::parse(" Alice@Example.test ").must();

        assert_eq!(authenticator.asked(), "Alice@Example.test");
        assert_eq!(authenticator.mail_address(), Some("alice@example.test"));
        assert_eq!(
            Authenticator::parse("+4930123456").must().mail_address(),
            None
        );
    }
}
