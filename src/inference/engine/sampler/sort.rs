//! Sorting with the order of ties that llama.cpp users get.
//!
//! Equal logits are common (quantised heads, masked tokens), and which of them survives a cut
//! decides the text. llama.cpp sorts with `std::sort` and `std::partial_sort`, which are not
//! stable, so the order of ties is a property of the algorithm. These are the algorithms of
//! libstdc++: introsort (median of three, insertion sort below 17 elements, heap sort when too
//! deep) and heap selection; plus llama.cpp's bucket pass for long prefixes.
//!
//! `before(a, b)` says that `a` belongs before `b`. An inconsistent order (NaN) leaves the slice in
//! some order; it never panics.

use super::candidates::Candidate;

/// Slices up to this length are left to the final insertion sort.
const INSERTION_MAX: usize = 16;

/// Sorts the whole slice as `std::sort` does.
pub fn sort<T: Copy>(items: &mut [T], before: &impl Fn(&T, &T) -> bool) {
    if items.len() < 2 {
        return;
    }
    let depth = 2 * items.len().ilog2();
    introsort(items, depth, before);
    let head = items.len().min(INSERTION_MAX);
    insertion_sort(&mut items[..head], before);
    for i in head..items.len() {
        insert_backwards(items, i, before);
    }
}

/// Puts the first `n` of the order at the front, sorted, as `std::partial_sort` does; the rest
/// follows in no particular order.
pub fn partial_sort<T: Copy>(items: &mut [T], n: usize, before: &impl Fn(&T, &T) -> bool) {
    if n == 0 {
        return;
    }
    for parent in (0..n / 2).rev() {
        let value = items[parent];
        sift(items, parent, n, value, before);
    }
    for i in n..items.len() {
        if before(&items[i], &items[0]) {
            let value = items[i];
            items[i] = items[0];
            sift(items, 0, n, value, before);
        }
    }
    for end in (1..n).rev() {
        let value = items[end];
        items[end] = items[0];
        sift(items, 0, end, value, before);
    }
}

fn introsort<T: Copy>(items: &mut [T], mut depth: u32, before: &impl Fn(&T, &T) -> bool) {
    let mut end = items.len();
    while end > INSERTION_MAX {
        if depth == 0 {
            partial_sort(&mut items[..end], end, before);
            return;
        }
        depth -= 1;
        let cut = partition(&mut items[..end], before);
        introsort(&mut items[cut..end], depth, before);
        end = cut;
    }
}

/// Splits around the median of the second, middle and last element; the cut is returned.
fn partition<T: Copy>(items: &mut [T], before: &impl Fn(&T, &T) -> bool) -> usize {
    let n = items.len();
    let pivot = median(items, 1, n / 2, n - 1, before);
    items.swap(0, pivot);
    let (mut low, mut high) = (1, n);
    loop {
        while low < n && before(&items[low], &items[0]) {
            low += 1;
        }
        high -= 1;
        while high > 0 && before(&items[0], &items[high]) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        items.swap(low, high);
        low += 1;
    }
}

/// Which of three places holds the middle value.
fn median<T>(items: &[T], a: usize, b: usize, c: usize, before: &impl Fn(&T, &T) -> bool) -> usize {
    let lt = |x: usize, y: usize| before(&items[x], &items[y]);
    match (lt(a, b), lt(b, c), lt(a, c)) {
        (true, true, _) => b,
        (true, false, true) => c,
        (true, false, false) => a,
        (false, _, true) => a,
        (false, true, false) => c,
        (false, false, false) => b,
    }
}

fn insertion_sort<T: Copy>(items: &mut [T], before: &impl Fn(&T, &T) -> bool) {
    for i in 1..items.len() {
        if before(&items[i], &items[0]) {
            items[..=i].rotate_right(1);
        } else {
            insert_backwards(items, i, before);
        }
    }
}

/// Moves element `i` left past everything that it belongs before.
fn insert_backwards<T: Copy>(items: &mut [T], i: usize, before: &impl Fn(&T, &T) -> bool) {
    let value = items[i];
    let mut hole = i;
    while hole > 0 && before(&value, &items[hole - 1]) {
        items[hole] = items[hole - 1];
        hole -= 1;
    }
    items[hole] = value;
}

/// Sinks the hole to a leaf of the heap `items[..n]`, then lets `value` rise from there.
///
/// The usual sift stops early; libstdc++ does not, and ties notice.
fn sift<T: Copy>(
    items: &mut [T],
    top: usize,
    n: usize,
    value: T,
    before: &impl Fn(&T, &T) -> bool,
) {
    let mut hole = top;
    while 2 * hole + 2 < n {
        let right = 2 * hole + 2;
        let child = if before(&items[right], &items[right - 1]) { right - 1 } else { right };
        items[hole] = items[child];
        hole = child;
    }
    if 2 * hole + 2 == n {
        items[hole] = items[n - 1];
        hole = n - 1;
    }
    while hole > top && before(&items[(hole - 1) / 2], &value) {
        items[hole] = items[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    items[hole] = value;
}

/// Higher logits come first.
pub fn by_logit(a: &Candidate, b: &Candidate) -> bool {
    a.logit > b.logit
}

const N_BUCKETS: usize = 128;
/// Buckets divide logits from -10 to 10 evenly; the outer two take the rest.
const BUCKETS_PER_LOGIT: f32 = 6.4;
const BUCKET_OF_ZERO: f32 = 64.0;

/// Writes to `to` the candidates of the highest buckets that hold at least `n`; its first `n` are
/// the highest of `from`, sorted. `buckets` is scratch.
pub fn bucket_top(from: &[Candidate], n: usize, buckets: &mut Vec<u8>, to: &mut Vec<Candidate>) {
    let mut histogram = [0usize; N_BUCKETS];
    buckets.clear();
    buckets.extend(from.iter().map(|c| {
        // The cast saturates, so infinities go to the outer buckets.
        let bucket = (BUCKETS_PER_LOGIT * c.logit + BUCKET_OF_ZERO) as i32;
        bucket.clamp(0, N_BUCKETS as i32 - 1) as u8
    }));
    for &bucket in buckets.iter() {
        histogram[bucket as usize] += 1;
    }
    let mut lowest = N_BUCKETS - 1;
    let mut n_have = histogram[lowest];
    while n_have < n && lowest > 0 {
        lowest -= 1;
        n_have += histogram[lowest];
    }
    // Each bucket's next free place in `to`, the highest bucket first.
    let mut next = [0usize; N_BUCKETS];
    let mut place = 0;
    for bucket in (lowest..N_BUCKETS).rev() {
        next[bucket] = place;
        place += histogram[bucket];
    }
    to.clear();
    to.resize(n_have, Candidate::default());
    for (candidate, &bucket) in from.iter().zip(buckets.iter()) {
        if bucket as usize >= lowest {
            to[next[bucket as usize]] = *candidate;
            next[bucket as usize] += 1;
        }
    }
    let mut done = 0;
    for bucket in (lowest + 1..N_BUCKETS).rev() {
        sort(&mut to[done..done + histogram[bucket]], &by_logit);
        done += histogram[bucket];
    }
    let rest = n.saturating_sub(done).min(n_have - done);
    partial_sort(&mut to[done..], rest, &by_logit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn less(a: &(u8, usize), b: &(u8, usize)) -> bool {
        a.0 < b.0
    }

    /// The order in which libstdc++ 12 leaves equal keys, recorded from a C++ program that sorted
    /// (key, index) pairs with keys `i * 7 % 5`.
    #[test]
    fn ties_stand_where_libstdcxx_leaves_them() {
        let pairs = |n: usize| (0..n).map(|i| ((i * 7 % 5) as u8, i)).collect::<Vec<_>>();
        let ids = |v: &[(u8, usize)]| v.iter().map(|p| p.1).collect::<Vec<_>>();
        let mut v = pairs(20);
        sort(&mut v, &less);
        assert_eq!(ids(&v), SORT_20);
        let mut v = pairs(20);
        partial_sort(&mut v, 6, &less);
        assert_eq!(ids(&v[..6]), PARTIAL_20_6);
    }

    const SORT_20: [usize; 20] =
        [0, 5, 15, 10, 18, 3, 13, 8, 1, 16, 11, 6, 9, 14, 4, 19, 12, 7, 17, 2];
    const PARTIAL_20_6: [usize; 6] = [15, 10, 0, 5, 13, 3];

    proptest! {
        #[test]
        fn sorts(mut v in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut want = v.clone();
            want.sort_unstable();
            let before = |a: &u8, b: &u8| a < b;
            sort(&mut v, &before);
            prop_assert_eq!(&v, &want);
        }

        #[test]
        fn selects(mut v in proptest::collection::vec(any::<u8>(), 1..400), part in 0.0f64..=1.0) {
            let n = (v.len() as f64 * part) as usize;
            let mut want = v.clone();
            want.sort_unstable();
            partial_sort(&mut v, n, &|a: &u8, b: &u8| a < b);
            prop_assert_eq!(&v[..n], &want[..n]);
            v.sort_unstable();
            prop_assert_eq!(v, want);
        }

        #[test]
        fn no_order_at_all_does_not_panic(
            mut v in proptest::collection::vec(prop_oneof![Just(f32::NAN), any::<f32>()], 0..300),
        ) {
            sort(&mut v, &|a: &f32, b: &f32| a < b);
            sort(&mut v, &|_: &f32, _: &f32| true);
        }

        #[test]
        fn buckets_agree_with_a_sort(
            logits in proptest::collection::vec(-40.0f32..40.0, 1..600),
            part in 0.0f64..=1.0,
        ) {
            let n = ((logits.len() as f64 * part) as usize).max(1);
            let from: Vec<_> =
                logits.iter().map(|&logit| Candidate { id: 0, logit, p: 0.0 }).collect();
            let (mut buckets, mut to) = (Vec::new(), Vec::new());
            bucket_top(&from, n, &mut buckets, &mut to);
            let mut want = logits;
            want.sort_by(|a, b| b.total_cmp(a));
            let got: Vec<_> = to[..n].iter().map(|c| c.logit).collect();
            prop_assert_eq!(&got[..], &want[..n]);
        }
    }
}
