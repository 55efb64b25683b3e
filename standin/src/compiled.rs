//! What the device's compiler made of each kernel: the tables that `scripts/cuda/kernel-report` writes and commits. The host's
//! compiler cannot know it, and the driver's limits depend on it.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Registers and static shared memory of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compiled {
    /// Of a thread.
    pub registers: u32,
    /// Of a block, in bytes.
    pub shared: usize,
}

/// `docs/cuda-kernels.md`, and the same for the kernels of the stand-in's own tests.
const TABLES: [&str; 2] = [include_str!("../../docs/cuda-kernels.md"), include_str!("../tests/kernels/compiled.md")];

/// By kernel: a row's architectures with what was found for each.
type Rows = HashMap<String, Vec<(u32, Compiled)>>;

static ROWS: LazyLock<Rows> = LazyLock::new(|| TABLES.into_iter().flat_map(rows).collect());

/// A kernel as it is compiled for a capability; `None` for one that no table has. A capability without a column has the worst
/// of the columns: its own is not known.
pub fn of(kernel: &str, capability: u32) -> Option<Compiled> {
    let row = ROWS.get(kernel)?;
    let own = row.iter().find(|(architecture, _)| *architecture == capability).map(|(_, compiled)| *compiled);
    own.or_else(|| {
        row.iter()
            .map(|(_, compiled)| *compiled)
            .reduce(|a, b| Compiled { registers: a.registers.max(b.registers), shared: a.shared.max(b.shared) })
    })
}

fn rows(table: &str) -> Vec<(String, Vec<(u32, Compiled)>)> {
    let mut columns: Vec<u32> = Vec::new();
    let mut found = Vec::new();
    for line in table.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0] == "kernel" {
            let names = cells.iter().filter_map(|cell| cell.strip_prefix("registers sm_"));
            columns = names.filter_map(|name| name.parse().ok()).collect();
        }
        let Some(name) = cells[0].strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let numbers: Option<Vec<u32>> = cells[1..=columns.len()].iter().map(|cell| cell.parse().ok()).collect();
        // One number, or one an architecture.
        let shared: Option<Vec<usize>> = cells[columns.len() + 1].split(" / ").map(|cell| cell.parse().ok()).collect();
        if let (Some(numbers), Some(shared)) = (numbers, shared) {
            let each = columns.iter().zip(numbers).enumerate();
            let each = each.map(|(i, (architecture, registers))| {
                (*architecture, Compiled { registers, shared: shared[i.min(shared.len() - 1)] })
            });
            found.push((name.to_owned(), each.collect()));
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Compiled, of, rows};

    #[test]
    fn the_committed_tables_are_read_whole() {
        assert_eq!(of("select_advance", 90).unwrap().shared, 2048);
        assert_eq!(of("select_plain_f32", 80).unwrap().shared, 32_768);
        assert_eq!(of("unheard_of", 90), None);
        for table in super::TABLES {
            let kernels = table.lines().filter(|line| line.starts_with("| `")).count();
            assert_eq!(rows(table).len(), kernels);
            assert!(rows(table).iter().all(|(_, row)| !row.is_empty()));
        }
    }

    #[test]
    fn an_architecture_without_a_column_has_the_worst_of_the_columns() {
        let text = "| kernel | registers sm_80 | registers sm_90 | shared | load | store |\n\
                    | `a` | 40 | 34 | 0 / 64 | 16 | 16 |\n";
        let (name, row) = rows(text).remove(0);
        assert_eq!(name, "a");
        assert_eq!(row, [(80, Compiled { registers: 40, shared: 0 }), (90, Compiled { registers: 34, shared: 64 })]);
    }
}
