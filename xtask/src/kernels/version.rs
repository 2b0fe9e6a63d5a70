//! Which of two package versions is newer, by the rules of deb-version(7).

use std::cmp::Ordering;

pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left) = epoch(left);
    let (right_epoch, right) = epoch(right);
    let (left_version, left_revision) = left.rsplit_once('-').unwrap_or((left, ""));
    let (right_version, right_revision) = right.rsplit_once('-').unwrap_or((right, ""));
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| part(left_version, right_version))
        .then_with(|| part(left_revision, right_revision))
}

fn epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Text and numbers in turn, each compared as what it is.
fn part(mut left: &str, mut right: &str) -> Ordering {
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = split(left, |byte| !byte.is_ascii_digit());
        let (right_text, right_rest) = split(right, |byte| !byte.is_ascii_digit());
        let (left_number, left_rest) = split(left_rest, |byte| byte.is_ascii_digit());
        let (right_number, right_rest) = split(right_rest, |byte| byte.is_ascii_digit());
        let order = text(left_text, right_text).then_with(|| number(left_number).cmp(&number(right_number)));
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (left_rest, right_rest);
    }
    Ordering::Equal
}

fn split(text: &str, belongs: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

/// A tilde sorts before the end, the end before letters, letters before the rest.
fn text(left: &str, right: &str) -> Ordering {
    let weight = |byte: Option<u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(letter),
        Some(other) => i32::from(other) + 256,
    };
    let length = left.len().max(right.len());
    let weights = |text: &str| (0..=length).map(|n| weight(text.as_bytes().get(n).copied())).collect::<Vec<_>>();
    weights(left).cmp(&weights(right))
}

fn number(digits: &str) -> u64 {
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_dpkg_sorts_them() {
        let ascending = [
            "5.10.262-1",
            "6.1.0-1",
            "6.1.176-1~deb11u1",
            "6.1.176-1",
            "6.1.192-2",
            "6.12.95-1~bpo12+1",
            "6.12.117-1~deb12u1",
            "6.12.117-1",
            "6.12.117-10",
            "6.18.5-1~bpo13+1",
            "6.18.15-1~bpo13+1",
            "7.3~rc7-1~exp1",
            "7.3-1",
            "7.3.4-1~bpo13+1",
            "1:1.0-1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{} and {}", pair[0], pair[1]);
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater);
            assert_eq!(compare(pair[0], pair[0]), Ordering::Equal);
        }
    }
}
