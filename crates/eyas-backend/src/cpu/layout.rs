//! The columns of a fused `qkv` row, checked and shared out among tasks.

use std::ops::Range;

use crate::spec::QkvLayout;
use crate::{Error, Result};

/// Checks that the heads of a layout tile its row.
pub(super) fn check_layout(op: &'static str, layout: &QkvLayout) -> Result<()> {
    let fail = |reason: String| Err(Error::Shape { op, reason });
    if layout.kv_heads == 0 || !layout.heads.is_multiple_of(layout.kv_heads) || layout.head_dim == 0 {
        return fail(format!(
            "{} query heads of {} elements do not share {} key/value heads evenly",
            layout.heads, layout.head_dim, layout.kv_heads
        ));
    }
    let mut heads: Vec<usize> = (0..layout.heads).map(|head| layout.query(head)).collect();
    heads.extend((0..layout.kv_heads).flat_map(|head| [layout.key(head), layout.value(head)]));
    heads.sort_unstable();
    if heads.iter().enumerate().any(|(i, &column)| column != i * layout.head_dim) {
        return fail(format!("the heads of {layout:?} overlap or leave gaps"));
    }
    Ok(())
}

/// Appends to `parts[i]` columns `columns[i]` of every row. The column ranges may come in any order but must not
/// overlap.
pub(super) fn split_columns<'a>(
    rows: &'a mut [f32],
    width: usize,
    columns: &[Range<usize>],
    parts: &mut [Vec<&'a mut [f32]>],
) {
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_unstable_by_key(|&i| columns[i].start);
    for mut row in rows.chunks_exact_mut(width) {
        let mut start = 0;
        for &i in &order {
            let (_, rest) = row.split_at_mut(columns[i].start - start);
            let (part, rest) = rest.split_at_mut(columns[i].len());
            parts[i].push(part);
            row = rest;
            start = columns[i].end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_checkpoint_layout_tiles_its_row() {
        for layout in [
            QkvLayout::contiguous(71, 1, 64),
            QkvLayout::contiguous(9, 3, 64),
            QkvLayout::grouped(128, 8, 64),
            QkvLayout::grouped(32, 32, 80),
        ] {
            check_layout("test", &layout).unwrap();
        }
        let sound = QkvLayout::contiguous(4, 2, 8);
        for broken in [
            QkvLayout { kv_heads: 0, ..sound },
            QkvLayout { heads: 5, ..sound },
            QkvLayout { head_dim: 0, ..sound },
            QkvLayout { value_offset: sound.key_offset, ..sound },
            QkvLayout { kv_stride: 9, ..sound },
        ] {
            assert!(check_layout("test", &broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn columns_are_split_in_the_order_asked_for() {
        let mut rows: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let mut parts = vec![Vec::new(), Vec::new()];
        split_columns(&mut rows, 5, &[3..5, 0..2], &mut parts);
        assert_eq!(parts, [[[3.0, 4.0], [8.0, 9.0]], [[0.0, 1.0], [5.0, 6.0]]]);
    }
}
