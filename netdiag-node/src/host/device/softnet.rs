//! Backlogs of the CPUs, from `/proc/net/softnet_stat` (`softnet_seq_show` in `net/core/net-procfs.c`).

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::Softnet;

use crate::host::{ReadError, file, own_net};

/// A line has 135 bytes; 4 096 CPUs fit.
const TEXT_BYTES: u64 = 1024 * 1024;

pub(super) fn read() -> Result<Vec<Softnet>, ReadError> {
    Ok(parse(&file::text(&own_net().join("softnet_stat"), TEXT_BYTES)?))
}

/// One line per online CPU, hexadecimal, 32 bits each. Which column is which never changed; newer kernels added some at the
/// end: the backlog and the CPU's number with Linux 5.10.
fn parse(text: &str) -> Vec<Softnet> {
    let line = |(position, line): (usize, &str)| {
        let columns: Vec<u32> =
            line.split_ascii_whitespace().map_while(|word| u32::from_str_radix(word, 16).ok()).collect();
        let column = |at: usize| columns.get(at).copied();
        let counter = |at| Counter { value: u64::from(column(at).unwrap_or(0)), ..Counter::default() };
        column(2)?;
        Some(Softnet {
            cpu: column(12).unwrap_or(u32::try_from(position).ok()?),
            processed: counter(0),
            dropped: counter(1),
            time_squeeze: counter(2),
            received_rps: counter(9),
            flow_limit: counter(10),
            backlog: column(11),
        })
    };
    text.lines().enumerate().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_of_linux_6_18() {
        let found = parse(include_str!("../../../tests/fixtures/host/softnet_stat"));
        assert_eq!(found.iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((found[0].processed.value, found[0].time_squeeze.value), (0x24_0e83, 3));
        assert_eq!(found[0].backlog, Some(0));
    }

    #[test]
    fn line_of_linux_5_4_has_no_backlog() {
        let found = parse(
            "0000272d 00000005 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000007 00000002\n",
        );
        assert_eq!((found[0].cpu, found[0].dropped.value, found[0].backlog), (0, 5, None));
        assert_eq!((found[0].received_rps.value, found[0].flow_limit.value), (7, 2));
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,400}") {
            assert!(parse(&text).len() <= text.len());
        }
    }
}
