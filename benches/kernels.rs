//! Kernels one by one: the table of shapes that parity tests run over, for every tensor type and
//! every instruction set of this machine.
//!
//! ```text
//! cargo bench --bench kernels                        all of it: some minutes
//! cargo bench --bench kernels -- Q4_0/avx512         those whose names hold that
//! cargo bench --bench kernels -- --save-baseline a   ... then --baseline a
//! ```
//!
//! An element is a multiply-add. For matrices as large as a model's see `jetforge bench kernels`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jetforge::inference::backend::cases::MATMUL;
use jetforge::inference::probe::Product;
use jetforge::inference::{Isa, TensorType};

fn matmul(c: &mut Criterion) {
    for ty in TensorType::ALL {
        for isa in Isa::available() {
            let mut group = c.benchmark_group(format!("{ty}/{}", isa.name()));
            for case in MATMUL {
                let n_cols = case.n_cols(ty);
                let shape = format!("{}x{n_cols} x {}", case.n_rows, case.n);
                let n_mac = (case.n_rows * n_cols * case.n) as u64;
                group.throughput(Throughput::Elements(n_mac));
                let id = BenchmarkId::new(shape, format!("{} threads", case.n_threads));
                group.bench_with_input(id, case, |bencher, &case| {
                    let mut product = Product::new(ty, case, isa).expect("threads can be had");
                    bencher.iter(|| product.pass());
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = kernels;
    // Hundreds of them: a fraction of a second each.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = matmul
}
criterion_main!(kernels);
