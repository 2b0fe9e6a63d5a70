//! Comparisons as intervals of values: what a field may be for a rule to match.

use netdiag_common::forwarding::expression::Operator;

use super::field::{Field, Interval, Subject};

/// A value shorter than its field is a prefix: of an address, or of an interface's name.
pub(super) fn equal_to(field: &Field, value: &[u8]) -> Interval {
    let (mut first, mut last) = (value.to_vec(), value.to_vec());
    first.resize(field.bytes.max(value.len()), 0);
    last.resize(field.bytes.max(value.len()), 0xff);
    Interval { first, last }
}

/// Only for values in network byte order, whose bytes compare like the numbers they are.
pub(super) fn ordered(field: &Field, operator: Operator, value: &[u8]) -> Option<Interval> {
    let network_order = matches!(
        field.subject,
        Subject::Source | Subject::Destination | Subject::SourcePort | Subject::DestinationPort | Subject::Number
    );
    if !network_order || value.len() != field.bytes {
        return None;
    }
    let (lowest, highest) = (vec![0; value.len()], vec![0xff; value.len()]);
    Some(match operator {
        Operator::LessOrEqual => Interval { first: lowest, last: value.to_vec() },
        Operator::GreaterOrEqual => Interval { first: value.to_vec(), last: highest },
        Operator::Less => Interval { first: lowest, last: step(value, u8::overflowing_sub)? },
        Operator::Greater => Interval { first: step(value, u8::overflowing_add)?, last: highest },
        Operator::Equal | Operator::NotEqual => return None,
    })
}

/// One more or one less; none beyond the ends.
fn step(value: &[u8], by: fn(u8, u8) -> (u8, bool)) -> Option<Vec<u8>> {
    let mut value = value.to_vec();
    for byte in value.iter_mut().rev() {
        let (stepped, carry) = by(*byte, 1);
        *byte = stepped;
        if !carry {
            return Some(value);
        }
    }
    None
}

/// The interval of a value under a contiguous mask.
pub(super) fn prefix(mask: &[u8], value: &[u8]) -> Option<Interval> {
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).take_while(|ones| *ones > 0).sum();
    let contiguous = mask.iter().map(|byte| byte.count_ones()).sum::<u32>() == ones
        && mask.iter().skip_while(|byte| **byte == 0xff).skip(1).all(|byte| *byte == 0);
    (contiguous && mask.len() == value.len() && value.iter().zip(mask).all(|(v, m)| v & !m == 0)).then(|| Interval {
        first: value.to_vec(),
        last: value.iter().zip(mask).map(|(value, mask)| value | !mask).collect(),
    })
}

/// The bytes of an interval that one field of a longer key takes; none when the key ends before them.
pub(super) fn cut(interval: &Interval, range: &std::ops::Range<usize>) -> Option<Interval> {
    // A key of unknown width is one field: the whole of it.
    let range = if range.is_empty() { 0..interval.first.len() } else { range.clone() };
    let range = range.start..range.end.min(interval.first.len());
    Some(Interval { first: interval.first.get(range.clone())?.to_vec(), last: interval.last.get(range)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_contiguous_masks_are_prefixes() {
        assert!(prefix(&[255, 255, 0, 255], &[10, 0, 0, 1]).is_none());
        assert!(prefix(&[255, 240, 128, 0], &[10, 0, 0, 0]).is_none());
        let found = prefix(&[255, 240, 0, 0], &[172, 16, 0, 0]).unwrap();
        assert_eq!((found.first, found.last), (vec![172, 16, 0, 0], vec![172, 31, 255, 255]));
    }

    #[test]
    fn nothing_is_below_zero() {
        let field = Field::new(Subject::DestinationPort, "tcp dport", 2);
        assert!(ordered(&field, Operator::Less, &[0, 0]).is_none());
        assert_eq!(ordered(&field, Operator::Less, &[1, 0]).map(|i| i.last), Some(vec![0, 255]));
    }
}
