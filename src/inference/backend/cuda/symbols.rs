//! The driver's functions, found by name when the library is opened.
//!
//! The table is what a driver of CUDA 10.2 exports of what is used here, under the names that it
//! has there: newer drivers have them all. Either every symbol is found or the answer is which one
//! is not; nothing is looked up later, so no call can meet a missing one. What only saves time may
//! be missing: a board's driver need not export all that a desktop's does.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;

use libloading::Library;

use super::CudaError;

/// What the driver answers when all is well.
pub const SUCCESS: c_int = 0;
/// What it answers when a name is not known.
pub const NOT_FOUND: c_int = 500;

/// The driver's address of device memory.
pub type DeviceAddress = u64;
/// A context, stream, event, module or function of the driver.
pub type Handle = *mut c_void;

macro_rules! symbols {
    (
        $($name:ident($($arg:ty),*);)*
        @optional $($maybe:ident($($maybe_arg:ty),*);)*
    ) => {
        /// The functions, by their names.
        #[allow(non_snake_case)] // the driver's names
        pub struct Symbols {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            $(pub $maybe: Option<unsafe extern "C" fn($($maybe_arg),*) -> c_int>,)*
            /// The code that the functions are. It is never unmapped: a driver has threads of its
            /// own, which nobody can wait for.
            _library: ManuallyDrop<Library>,
        }

        impl Symbols {
            /// Opens a driver library and finds every function.
            ///
            /// # Errors
            /// [`CudaError::Library`] or [`CudaError::Symbol`].
            pub fn open(path: &Path) -> Result<Symbols, CudaError> {
                let failed = |source| CudaError::Library { path: path.to_owned(), source };
                // SAFETY: a driver library runs no code when opened but the initialisers that
                // every process with CUDA runs.
                let library = unsafe { Library::new(path) }.map_err(failed)?;
                Ok(Symbols {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the type is the one that CUDA 10.2's cuda.h declares.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($arg),*) -> c_int>(name.as_bytes())
                        };
                        *found.map_err(|_| CudaError::Symbol { name: stringify!($name) })?
                    },)*
                    $($maybe: {
                        type Function = unsafe extern "C" fn($($maybe_arg),*) -> c_int;
                        let name = concat!(stringify!($maybe), "\0");
                        // SAFETY: as above.
                        let found = unsafe { library.get::<Function>(name.as_bytes()) };
                        found.ok().map(|function| *function)
                    },)*
                    _library: ManuallyDrop::new(library),
                })
            }
        }
    };
}

symbols! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(c_int, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuCtxCreate_v2(*mut Handle, c_uint, c_int);
    cuCtxDestroy_v2(Handle);
    cuCtxSetCurrent(Handle);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut DeviceAddress, usize);
    cuMemFree_v2(DeviceAddress);
    cuMemcpyHtoDAsync_v2(DeviceAddress, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, DeviceAddress, usize, Handle);
    cuMemcpyDtoDAsync_v2(DeviceAddress, DeviceAddress, usize, Handle);
    cuMemsetD8Async(DeviceAddress, u8, usize, Handle);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuEventCreate(*mut Handle, c_uint);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventElapsedTime(*mut f32, Handle, Handle);
    cuModuleLoadDataEx(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuFuncGetAttribute(*mut c_int, c_int, Handle);
    cuLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void,
        *mut *mut c_void
    );
    @optional
    cuLinkCreate_v2(c_uint, *mut c_int, *mut *mut c_void, *mut Handle);
    cuLinkAddData_v2(
        Handle, c_int, *mut c_void, usize, *const c_char, c_uint, *mut c_int, *mut *mut c_void
    );
    cuLinkComplete(Handle, *mut *mut c_void, *mut usize);
    cuLinkDestroy(Handle);
    cuStreamBeginCapture_v2(Handle, c_int);
    cuStreamEndCapture(Handle, *mut Handle);
    cuGraphInstantiate(*mut Handle, Handle, *mut Handle, *mut c_char, usize);
    cuGraphLaunch(Handle, Handle);
    cuGraphExecDestroy(Handle);
    cuGraphDestroy(Handle);
}

impl Symbols {
    /// The driver's name of an error.
    pub fn error_name(&self, code: c_int) -> String {
        let mut name = std::ptr::null();
        // SAFETY: the driver writes a pointer to a string that lives as long as the library.
        let known = unsafe { (self.cuGetErrorName)(code, &raw mut name) } == SUCCESS;
        if !known || name.is_null() {
            return format!("error {code}");
        }
        // SAFETY: as above.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}
