//! The queues that programs of the calling thread's network namespace listen to (`/proc/net/netfilter/nfnetlink_queue`).

use crate::host::{ReadError, file, own_net};

/// A line has about fifty bytes, and there are 65 536 numbers.
const MAX_BYTES: u64 = 8 << 20;

pub(super) fn listened() -> Result<Vec<u16>, ReadError> {
    // Without the file the kernel has no such queues: its module is not loaded.
    let text = file::text_if_there(&own_net().join("netfilter/nfnetlink_queue"), MAX_BYTES)?;
    parse(&text.unwrap_or_default())
}

/// One line for each, which begins with its number (`seq_show` of nfnetlink_queue.c, Linux 6.18).
fn parse(text: &str) -> Result<Vec<u16>, ReadError> {
    text.lines().map(|line| number(line).ok_or_else(|| malformed(line))).collect()
}

fn number(line: &str) -> Option<u16> {
    line.split_whitespace().next()?.parse().ok()
}

fn malformed(line: &str) -> ReadError {
    let why = format!("{line:?} does not begin with a number");
    ReadError::Malformed { what: "the queues to programs".into(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_the_number_of_its_queue() {
        let first = "    0   1234     0 2 65535     0     0        7  1";
        let second = "40000   1234     2 2   128     1     0      912  1";
        assert_eq!(parse(&format!("{first}\n{second}\n")).unwrap(), [0, 40_000]);
        assert_eq!(parse("").unwrap(), [0_u16; 0]);
        assert!(parse("queue 1\n").is_err());
    }
}
