//! Lists in sentences: the first entries are named, the rest is counted.

use std::fmt::Display;

/// `shop/web-1, shop/web-2 and 4 more`
pub(crate) fn named(all: impl ExactSizeIterator<Item: Display>, most: usize) -> String {
    let more = all.len().saturating_sub(most);
    let named = all.take(most).map(|one| one.to_string()).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}
