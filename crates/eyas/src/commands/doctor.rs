//! `eyas doctor`: what is there, whether it computes rightly, and what it reaches.

use std::process::ExitCode;

use anyhow::Result;
use eyas_backend::{Backend, Dtype, parity};
use eyas_cuda::CudaReport;
use eyas_model::shapes;
use eyas_train::Recipe;
use eyas_train::bench;
use eyas_train::plan::display_bytes;

use crate::cli::DoctorArgs;
use crate::commands::bench::ceiling;
use crate::device::{Choice, Work};
use crate::session;

pub fn run(device: Choice, args: DoctorArgs) -> Result<ExitCode> {
    println!("eyas {} on {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    let found = eyas_cuda::probe();
    print_report(&found);
    let recipe: Recipe = session::builtin("demo")?;
    let mut code = ExitCode::SUCCESS;
    for device in device.each(&found) {
        let of_one = device.run(&recipe, Examine { quick: args.quick })?;
        if of_one != ExitCode::SUCCESS {
            code = of_one;
        }
    }
    Ok(code)
}

fn print_report(report: &CudaReport) {
    println!("\nNVIDIA");
    for library in &report.libraries {
        match &library.found {
            Ok(path) => println!("  {:<12} {}", library.name, path.display()),
            Err(advice) => println!("  {:<12} missing: {advice}", library.name),
        }
    }
    if let Some((major, minor)) = report.driver {
        println!("  {:<12} CUDA {major}.{minor}", "driver");
    }
    match &report.devices {
        Ok(cards) if cards.is_empty() => println!("  no card"),
        Ok(cards) => {
            for card in cards {
                println!(
                    "  {:<12} {}, compute capability {}.{}, {} multiprocessors, {}",
                    format!("cuda:{}", card.ordinal),
                    card.name,
                    card.sm.0,
                    card.sm.1,
                    card.multiprocessors,
                    display_bytes(card.memory)
                );
            }
        }
        Err(reason) => println!("  {reason}"),
    }
}

struct Examine {
    quick: bool,
}

impl Work for Examine {
    type Output = ExitCode;

    fn run<B: Backend>(self, backend: &B) -> Result<ExitCode> {
        println!("\n{}, activations in {:?}", backend.name(), backend.compute_dtype());
        if let Some(free) = backend.free_memory()? {
            println!("  {:<12} {}", "free memory", display_bytes(free));
        }
        // A device with memory of its own is a card.
        let on_card = B::OFFLOADS;
        let ceilings = bench::ceilings(backend, ceiling::<B>())?;
        println!("  {:<12} {:.2} TFLOP/s", "products", ceilings.product / 1e12);
        println!("  {:<12} {:.1} GB/s", "memory", ceilings.memory / 1e9);
        if on_card {
            println!(
                "  {:<12} {:.1} GB/s to it, {:.1} GB/s back, by way of pageable memory",
                "bus",
                ceilings.bus.0 / 1e9,
                ceilings.bus.1 / 1e9
            );
        }
        println!("\nwhat that allows at best: the frozen products of training alone");
        for name in ["smollm2-135m", "llama-3.2-1b", "falcon-7b", "llama-3-8b"] {
            let decoder = shapes::published(name)?;
            let weights =
                decoder.linear_parameters() as f64 + (decoder.vocab_size * decoder.hidden_size) as f64;
            println!("  {name:<12} {:>9.0} tokens/s", ceilings.product / (4.0 * weights));
        }
        if self.quick {
            return Ok(ExitCode::SUCCESS);
        }
        println!("\nevery operation against its reference");
        // The operands of products are rounded to the activations' type, or to bfloat16 by some processors' kernels.
        let matmul = if on_card { backend.compute_dtype() } else { Dtype::Bf16 };
        let rows = parity::check(backend, matmul)?;
        let mut failed = 0;
        for op in parity::OPS {
            let of_op: Vec<_> = rows.iter().filter(|row| row.op == op).collect();
            let Some(worst) =
                of_op.iter().max_by(|a, b| (a.error / a.tolerance).total_cmp(&(b.error / b.tolerance)))
            else {
                continue;
            };
            let wrong = of_op.iter().filter(|row| !row.passes()).count();
            failed += wrong;
            println!(
                "  {op:<26} {:>3} cases, error {:.1e} of {:.1e} allowed{}",
                of_op.len(),
                worst.error,
                worst.tolerance,
                if wrong > 0 { format!("   {wrong} WRONG, such as {}", worst.case) } else { String::new() }
            );
        }
        if failed > 0 {
            println!("\n{failed} of {} checks failed: do not trust results of this device", rows.len());
            return Ok(ExitCode::FAILURE);
        }
        println!("\nall {} checks passed", rows.len());
        Ok(ExitCode::SUCCESS)
    }
}
