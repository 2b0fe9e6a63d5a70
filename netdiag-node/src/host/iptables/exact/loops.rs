//! Jumps that lead in a circle. The kernel refuses them (`mark_source_chains`), so a table with one was not read as it is.

/// Whether jumps between so many chains, from one by its number to another, come back to where they began.
pub(super) fn is_circular(chains: usize, mut jumps: Vec<(usize, usize)>) -> bool {
    jumps.sort_unstable();
    let mut jumps_into = vec![0_u32; chains];
    for (_, to) in &jumps {
        jumps_into[*to] += 1;
    }
    // Chains that no jump leads to are taken away with their jumps, until none is left, or a circle.
    let mut free: Vec<usize> = (0..chains).filter(|chain| jumps_into[*chain] == 0).collect();
    let mut taken = 0;
    while let Some(chain) = free.pop() {
        taken += 1;
        let first = jumps.partition_point(|(from, _)| *from < chain);
        for (_, to) in jumps[first..].iter().take_while(|(from, _)| *from == chain) {
            jumps_into[*to] -= 1;
            if jumps_into[*to] == 0 {
                free.push(*to);
            }
        }
    }
    taken < chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_way_back_is_a_circle() {
        assert!(!is_circular(4, vec![(0, 1), (0, 2), (1, 3), (2, 3), (0, 1)]));
        assert!(is_circular(4, vec![(0, 1), (1, 2), (2, 1)]));
        assert!(is_circular(1, vec![(0, 0)]));
        assert!(!is_circular(0, Vec::new()));
    }
}
