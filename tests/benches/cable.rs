//! A guest's frames through a loopback, for a developer's own machine: `cargo bench -p forwarder-tests`. Worker and guest
//! double are in this process, on two threads; where the guest is the slower one, it is the guest that is measured.
//! `cargo xtask bench` compares with DPDK.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forwarder_tests::stand::Stand;
use relay::driver::nic::{GuestNic, NicOptions};

/// Frames that go round together.
const WINDOW: u64 = 128;

/// Sends a window of frames and takes all of them back.
fn once_round(nic: &mut GuestNic, frame: &[u8]) {
    for _ in 0..WINDOW {
        assert!(nic.send(frame), "all buffers are back");
    }
    nic.flush();
    let (mut back, mut sent) = (0, 0);
    while back < WINDOW as usize || sent < WINDOW as usize {
        back += nic.receive(64, |_| ());
        sent += nic.take_sent();
    }
}

#[allow(clippy::expect_used)]
fn cable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cable");
    group.throughput(Throughput::Elements(WINDOW));
    for (ring, packed) in [("split", false), ("packed", true)] {
        for size in [64, 1518] {
            let stand = Stand::new(1);
            stand.loopback(0);
            let options = NicOptions { packed, ..NicOptions::default() };
            let mut nic = stand.connect(0, options).expect("an ordinary guest");
            nic.set_polling(true);
            let frame = vec![2; size];
            group.bench_function(BenchmarkId::new(ring, size), |bencher| {
                bencher.iter(|| once_round(&mut nic, &frame));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = cable
}
criterion_main!(benches);
