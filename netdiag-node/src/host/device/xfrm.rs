//! What went wrong with IPsec, from `/proc/net/xfrm_stat` (`net/xfrm/xfrm_proc.c`).

use std::collections::BTreeMap;

use netdiag_common::observation::counter::Counter;

use crate::host::{ReadError, file, own_net};

const TEXT_BYTES: u64 = 64 * 1024;

/// The calling thread's namespace. None without `CONFIG_XFRM_STATISTICS`.
pub(super) fn read() -> Result<Option<BTreeMap<String, Counter>>, ReadError> {
    Ok(file::text_if_there(&own_net().join("xfrm_stat"), TEXT_BYTES)?.map(|text| parse(&text)))
}

fn parse(text: &str) -> BTreeMap<String, Counter> {
    let line = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        let value = value.trim().parse().ok()?;
        Some((name.to_owned(), Counter { value, ..Counter::default() }))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_of_linux_6_18() {
        let found = parse(include_str!("../../../tests/fixtures/host/xfrm_stat"));
        assert!(found.contains_key("XfrmInNoStates") && found.contains_key("XfrmOutNoStates"), "{found:?}");
    }

    #[test]
    fn lines_that_are_no_counters_are_skipped() {
        let found = parse("XfrmInError  \t7\nXfrmBroken\nXfrmInNoPols x\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found["XfrmInError"].value, 7);
    }
}
