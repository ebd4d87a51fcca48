//! Compiled PTX, its kernels, their arguments, and launches.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::CudaError;
use super::super::symbols::{Handle, NOT_FOUND, SUCCESS};
use super::memory::Buffer;
use super::{Device, FUNCTION_REGISTERS, FUNCTION_THREADS_MAX, Shared};

/// What PTX is to the driver's linker.
const PTX_INPUT: c_int = 1;

impl Device {
    /// Compiles PTX, or takes what was compiled of it before.
    ///
    /// # Errors
    /// If the driver refuses it, with what it says.
    pub fn load(&self, name: &'static str, ptx: &str) -> Result<Module, CudaError> {
        let text = CString::new(ptx).map_err(|_| CudaError::Ptx { name })?;
        if let Some(images) = &self.images {
            let compiled = images.find(&self.info, ptx).or_else(|| {
                let image = self.compile(name, &text)?;
                images.keep(&self.info, ptx, &image);
                Some(image)
            });
            if let Some(module) = compiled.and_then(|image| self.load_image(&image).ok()) {
                return Ok(module);
            }
            images.forget(&self.info, ptx);
        }
        self.load_image(text.as_bytes_with_nul())
    }

    /// The machine code of PTX, if the driver gives it away.
    fn compile(&self, name: &str, ptx: &CStr) -> Option<Vec<u8>> {
        let symbols = &self.shared.context.symbols;
        let (create, add) = (symbols.cuLinkCreate_v2?, symbols.cuLinkAddData_v2?);
        let (complete, destroy) = (symbols.cuLinkComplete?, symbols.cuLinkDestroy?);
        self.shared.bind().ok()?;
        let (mut state, none) = (std::ptr::null_mut(), std::ptr::null_mut::<c_int>());
        // SAFETY: the driver writes one handle; there are no options.
        if unsafe { create(0, none, none.cast(), &raw mut state) } != SUCCESS {
            return None;
        }
        let name = CString::new(name).unwrap_or_default();
        let text = ptx.to_bytes_with_nul();
        let (mut image, mut n_bytes) = (std::ptr::null_mut(), 0);
        // SAFETY: the driver reads so many bytes of text; what it makes lives as long as `state`,
        // and is copied before that goes.
        unsafe {
            let data = text.as_ptr().cast_mut().cast();
            let added =
                add(state, PTX_INPUT, data, text.len(), name.as_ptr(), 0, none, none.cast());
            let is_done =
                added == SUCCESS && complete(state, &raw mut image, &raw mut n_bytes) == SUCCESS;
            let copy = (is_done && !image.is_null())
                .then(|| std::slice::from_raw_parts(image.cast::<u8>(), n_bytes).to_vec());
            destroy(state);
            copy
        }
    }

    /// Loads PTX that ends in a zero byte, or machine code.
    fn load_image(&self, image: &[u8]) -> Result<Module, CudaError> {
        self.shared.bind()?;
        let mut handle = std::ptr::null_mut();
        let nothing: *mut c_int = std::ptr::null_mut();
        // SAFETY: text ends in a zero byte, and machine code says where it ends: it is whole, as
        // the driver made it. There are no options.
        let code = unsafe {
            (self.shared.context.symbols.cuModuleLoadDataEx)(
                &raw mut handle,
                image.as_ptr().cast(),
                0,
                nothing,
                nothing.cast(),
            )
        };
        self.shared.check("cuModuleLoadDataEx", code)?;
        let registers_per_block = self.info.registers_per_block;
        let loaded = Loaded { shared: self.shared.clone(), handle, registers_per_block };
        Ok(Module { loaded: Arc::new(loaded) })
    }
}

struct Loaded {
    shared: Arc<Shared>,
    handle: Handle,
    registers_per_block: u32,
}

// SAFETY: as for `Shared`.
unsafe impl Send for Loaded {}
// SAFETY: as for `Shared`.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.shared.bind().is_ok() {
            // Launches may still be on their way when their batch was given up. One that failed
            // is over as well.
            let _ = self.shared.wait();
            // SAFETY: no kernel of it is left: nobody can launch one, and all that were are over.
            unsafe { (self.shared.context.symbols.cuModuleUnload)(self.handle) };
        }
    }
}

/// Compiled PTX.
#[derive(Clone)]
pub struct Module {
    loaded: Arc<Loaded>,
}

impl Module {
    /// A kernel of it, to be run by blocks of `n_thread` threads.
    ///
    /// # Errors
    /// If it has none of this name, or the device has not the registers for such a block.
    pub fn kernel(&self, name: &str, n_thread: u32) -> Result<Kernel, CudaError> {
        let Loaded { shared, handle, registers_per_block } = &*self.loaded;
        shared.bind()?;
        let missing = || CudaError::Kernel { name: name.to_owned() };
        let text = CString::new(name).map_err(|_| missing())?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is alive and the name ends in a zero byte.
        let code = unsafe {
            let name: *const c_char = text.as_ptr();
            (shared.context.symbols.cuModuleGetFunction)(&raw mut function, *handle, name)
        };
        if code == NOT_FOUND {
            return Err(missing());
        }
        shared.check("cuModuleGetFunction", code)?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the driver writes one integer; the function is alive.
            let code = unsafe {
                (shared.context.symbols.cuFuncGetAttribute)(&raw mut value, which, function)
            };
            shared.check("cuFuncGetAttribute", code)?;
            Ok::<_, CudaError>(u32::try_from(value).unwrap_or(0))
        };
        let n_register = attribute(FUNCTION_REGISTERS)?;
        let n_thread_max = attribute(FUNCTION_THREADS_MAX)?;
        if n_register * n_thread > *registers_per_block || n_thread > n_thread_max {
            return Err(CudaError::Resources { name: name.to_owned(), n_register, n_thread });
        }
        Ok(Kernel { loaded: self.loaded.clone(), function, n_thread })
    }
}

/// A kernel and how many threads its blocks have.
#[derive(Clone)]
pub struct Kernel {
    loaded: Arc<Loaded>,
    function: Handle,
    n_thread: u32,
}

// SAFETY: as for `Shared`; the module that the function belongs to lives in `loaded`.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// A kernel's arguments in the order of its declaration.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Each in a word of its own; a little-endian processor finds the value at its first byte.
    words: Vec<u64>,
}

impl Args {
    /// No arguments.
    pub fn new() -> Args {
        Args::default()
    }

    /// Adds where a buffer begins.
    #[must_use]
    pub fn buffer(mut self, buffer: &Buffer) -> Args {
        self.words.push(buffer.address());
        self
    }

    /// Adds a buffer that may be absent.
    #[must_use]
    pub fn optional(mut self, buffer: Option<&Buffer>) -> Args {
        self.words.push(buffer.map_or(0, Buffer::address));
        self
    }

    /// Adds a number.
    ///
    /// # Panics
    /// If it does not fit into 32 bits: shapes are checked long before.
    #[must_use]
    pub fn size(mut self, n: usize) -> Args {
        self.words.push(u64::from(u32::try_from(n).expect("sizes for kernels have 32 bits")));
        self
    }

    /// Adds a float.
    #[must_use]
    pub fn float(mut self, value: f32) -> Args {
        self.words.push(u64::from(value.to_bits()));
        self
    }
}

impl Kernel {
    /// Starts it on a grid of blocks.
    ///
    /// # Errors
    /// If the driver refuses. What goes wrong while it runs is told by [`Device::wait`].
    ///
    /// # Safety
    /// `args` are the kernel's, and buffers hold whatever it reads and writes on this grid.
    pub unsafe fn launch(&self, grid: [usize; 3], mut args: Args) -> Result<(), CudaError> {
        let shared = &self.loaded.shared;
        shared.bind()?;
        let [x, y, z] = grid.map(|n| c_uint::try_from(n).unwrap_or(0));
        let mut pointers: Vec<*mut c_void> =
            args.words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
        // SAFETY: the caller's promise; the driver copies the arguments before it returns.
        let code = unsafe {
            (shared.context.symbols.cuLaunchKernel)(
                self.function,
                x,
                y,
                z,
                self.n_thread,
                1,
                1,
                0,
                shared.stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        shared.check("cuLaunchKernel", code)?;
        shared.n_launch.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
