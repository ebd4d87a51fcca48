//! Instruction sets of the CPU backend: which there are here, and how one is chosen.

use super::super::BackendError;

/// An instruction set that kernels exist for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, on any processor.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2, and the dot products of bytes that AVX-VNNI brought to 256 bits.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AVX-512, and AMX's tiles of bytes for many columns.
    Amx,
    /// NEON as of ARMv8.0.
    Neon,
    /// NEON, and the dot products of bytes that ARMv8.2 brought.
    Dotprod,
}

impl Isa {
    /// The name that options and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
        }
    }

    /// What this machine has, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut isas = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if has_avx2 {
                isas.push(Isa::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    isas.push(Isa::AvxVnni);
                }
            }
            let has_vnni = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni");
            if has_avx2 && has_vnni {
                isas.push(Isa::Avx512);
                if super::amx::is_there() {
                    isas.push(Isa::Amx);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            // Every processor of this architecture has it.
            isas.push(Isa::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                isas.push(Isa::Dotprod);
            }
        }
        isas
    }

    /// The fastest of this machine.
    pub fn best() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Scalar)
    }

    /// The set called `name`, or the fastest of this machine.
    ///
    /// # Errors
    /// If there is no such set here.
    pub fn choose(name: Option<&str>) -> Result<Isa, BackendError> {
        let available = Isa::available();
        match name {
            None | Some("auto") => Ok(Isa::best()),
            Some(name) => available.iter().copied().find(|i| i.name() == name).ok_or_else(|| {
                let names: Vec<_> = available.iter().map(|i| i.name()).collect();
                BackendError::Isa { name: name.to_owned(), available: names.join(", ") }
            }),
        }
    }
}

/// Calls `$f::<S, ...>(args)` with the [`super::simd::Simd`] of `$isa`, inside a function that
/// enables the instruction set, so that the generic code is compiled for it.
///
/// # Safety
/// Unsafe to call: `$isa` must come from [`Isa::available`].
macro_rules! with_isa {
    ($isa:expr, $f:ident $(::<$($g:ty),*>)? ($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            use $crate::inference::backend::cpu::simd::{Avx2, Avx512};
            match $isa {
                Isa::Avx512 | Isa::Amx => {
                    #[target_feature(
                        enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni"
                    )]
                    unsafe fn run($($arg: $ty),*) {
                        // SAFETY: this function enables what `Avx512` needs; the rest is the
                        // caller's promise, passed on.
                        unsafe { $f::<Avx512 $($(, $g)*)?>($($arg),*) }
                    }
                    run($($arg),*)
                }
                // These kernels multiply floats: dot products of bytes are nothing to them.
                Isa::Avx2 | Isa::AvxVnni => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    unsafe fn run($($arg: $ty),*) {
                        // SAFETY: this function enables what `Avx2` needs; the rest is the
                        // caller's promise, passed on.
                        unsafe { $f::<Avx2 $($(, $g)*)?>($($arg),*) }
                    }
                    run($($arg),*)
                }
                _ => $f::<Scalar $($(, $g)*)?>($($arg),*),
            }
        }
        #[cfg(target_arch = "aarch64")]
        match $isa {
            // These kernels multiply floats, as on x86-64.
            Isa::Neon | Isa::Dotprod => {
                $f::<$crate::inference::backend::cpu::simd::Neon $($(, $g)*)?>($($arg),*)
            }
            _ => $f::<Scalar $($(, $g)*)?>($($arg),*),
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        match $isa {
            _ => $f::<Scalar $($(, $g)*)?>($($arg),*),
        }
    }};
}
pub(super) use with_isa;
