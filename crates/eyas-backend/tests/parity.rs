//! The CPU backend against the `f64` reference, with every kernel that the processor has.

use eyas_backend::parity::{OPS, OpParity, check};
use eyas_backend::{CpuBackend, CpuOptions, Dtype, MatmulKernel};

fn rows(kernel: MatmulKernel, matmul: Dtype) -> Vec<OpParity> {
    let backend = CpuBackend::new(CpuOptions { matmul: Some(kernel) }).unwrap();
    check(&backend, matmul).unwrap()
}

fn assert_all_pass(rows: &[OpParity]) {
    for row in rows {
        println!("{:28} {:44} {:.1e} of {:.1e}", row.op, row.case, row.error, row.tolerance);
    }
    let failed: Vec<_> = rows.iter().filter(|row| !row.passes()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_operation_agrees_in_f32() {
    let rows = rows(MatmulKernel::F32, Dtype::F32);
    assert_all_pass(&rows);
    for op in OPS {
        assert!(rows.iter().any(|row| row.op == op), "{op} is not compared");
    }
    assert!(rows.iter().all(|row| OPS.contains(&row.op)));
}

#[test]
fn every_operation_agrees_with_narrow_products() {
    for kernel in [MatmulKernel::I16, MatmulKernel::Bf16, MatmulKernel::AmxBf16] {
        if kernel.is_supported() {
            assert_all_pass(&rows(kernel, Dtype::Bf16));
        } else {
            eprintln!("skipped: this processor has not the {kernel} kernel");
        }
    }
}
