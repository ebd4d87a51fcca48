//! Every bound of the program, by name: a queue, buffer, body or retry without a line here is a
//! bug.

/// Metadata keys a GGUF file may hold.
pub const GGUF_KEYS_MAX: u64 = 65_536;
/// Tensors a GGUF file may hold, over all its shards.
pub const GGUF_TENSORS_MAX: u64 = 65_536;
/// Bytes of one ordinary metadata string.
pub const GGUF_STRING_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a chat template.
pub const CHAT_TEMPLATE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a metadata key, as the format says.
pub const GGUF_KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of a tensor's name, as the format says.
pub const GGUF_TENSOR_NAME_BYTES_MAX: u64 = 64;
/// Dimensions of a tensor.
pub const GGUF_DIMS_MAX: u32 = 4;
/// Least alignment of tensor data, in bytes.
pub const GGUF_ALIGNMENT_MIN: u64 = 8;
/// Greatest alignment of tensor data, in bytes.
pub const GGUF_ALIGNMENT_MAX: u64 = 65_536;
/// Items of one metadata array.
pub const GGUF_ARRAY_ITEMS_MAX: u64 = 2_000_000;
/// Bytes from the start of a GGUF file to its tensor data.
pub const GGUF_HEADER_BYTES_MAX: u64 = 256 << 20;
/// Shards of a split GGUF model.
pub const GGUF_SHARDS_MAX: u32 = 512;
/// Bytes of text that one call may tokenize.
pub const TOKENIZE_BYTES_MAX: usize = 16 << 20;
/// Steps a chat template may take.
pub const CHAT_TEMPLATE_FUEL: u64 = 400_000;
/// Width or precision that one call in a chat template may pad a text to.
pub const CHAT_TEMPLATE_WIDTH_MAX: usize = 9_999;
/// Stack of the thread that renders a chat template; only what is used takes memory. A template
/// can nest a value once per step, and the deepest recursion over one takes 500 bytes a level.
pub const CHAT_TEMPLATE_STACK_BYTES: usize = 256 << 20;
/// Weights that the quantizer holds at a time, as f32.
pub const QUANTIZE_CHUNK_WEIGHTS: usize = 4 << 20;
/// Bytes of an importance matrix.
pub const IMATRIX_BYTES_MAX: u64 = 512 << 20;
/// Bytes of the header of a safetensors file.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 32 << 20;
/// Bytes of a configuration or vocabulary beside safetensors files.
pub const FOLDER_JSON_BYTES_MAX: u64 = 64 << 20;
/// Rows of a report's source that wait to be compared.
pub const REPORT_ROWS_MAX: usize = 8;
/// Tokens in a vocabulary.
pub const VOCAB_MAX: usize = 1 << 20;
/// Bytes of one token's text.
pub const TOKEN_BYTES_MAX: usize = 16_384;
/// Layers of a model.
pub const LAYERS_MAX: u32 = 512;
/// Worker threads of the CPU backend.
pub const THREADS_MAX: usize = 256;
/// Floats that attention keeps of runs of pages that are summed apart.
pub const ATTENTION_PARTIALS_MAX: usize = 4 << 20;
/// LoRA adapters that a model has loaded at a time.
pub const ADAPTERS_MAX: usize = 256;
/// Rank of a LoRA adapter.
pub const LORA_RANK_MAX: u64 = 4096;
/// Bytes of weights that are packed on the host at a time on their way to a GPU. The file's pages
/// that they are made of come to about as much again, so loading takes far less than 64 MiB.
pub const DEVICE_LOAD_BYTES: usize = 8 << 20;
/// Multiply-adds of a launch on a GPU, where there is a choice and until launches are seen to take
/// longer than [`DEVICE_LAUNCH_MS_MAX`]. A Jetson Nano issues 118 G instructions a second; the
/// dearest product takes 1.53 of them for each (F16), attention over full tiles about 3.1: 113 ms.
/// At 640 instead of 921 MHz, and issuing every other turn, that is 0.33 s, and 0.5 s are allowed:
/// a board that draws its screen with the same processor ends a launch of two seconds.
pub const DEVICE_LAUNCH_PRODUCTS_MAX: usize = 4 << 30;
/// The least that this becomes by launches that take long.
pub const DEVICE_LAUNCH_PRODUCTS_MIN: usize = 16 << 20;
/// Milliseconds of a launch, half of what is allowed: longer ones make those of later steps half as
/// large.
pub const DEVICE_LAUNCH_MS_MAX: u64 = 250;
/// Tokens of a step on a GPU: a grid has no more rows.
pub const DEVICE_BATCH_MAX: usize = 65_535;
/// Kinds of steps whose launches a GPU keeps recorded.
pub const DEVICE_GRAPHS_MAX: usize = 8;
/// Tokens of a step that is recorded: steps of prompts are seldom alike.
pub const DEVICE_GRAPH_TOKENS_MAX: usize = 8;
/// Bytes of a GPU's machine code that is read from a file.
pub const DEVICE_IMAGE_BYTES_MAX: u64 = 64 << 20;
/// Files of machine code that are kept.
pub const DEVICE_IMAGES_MAX: usize = 128;
/// Redirects that a download follows.
pub const PULL_REDIRECTS_MAX: usize = 8;
/// Tries of one download before it gives up.
pub const PULL_ATTEMPTS_MAX: usize = 8;
/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Tries of one download before any byte has come, as when there is no network.
pub const PULL_FIRST_ATTEMPTS_MAX: usize = 3;
/// Bytes that a try must bring for the count of tries to start again.
pub const PULL_PROGRESS_BYTES_MIN: u64 = 1 << 20;
/// Bytes between two lines that tell how far a download is.
pub const PULL_STEP_BYTES_MIN: u64 = 1 << 20;
/// Longest pause between two tries of a download, whatever the server asks for.
pub const PULL_PAUSE_MS_MAX: u64 = 30_000;
/// Characters of a URL.
pub const URL_BYTES_MAX: usize = 8 << 10;
/// Bytes of the small files beside a model (record of its origin, state of its download).
pub const RECORD_BYTES_MAX: u64 = 64 << 10;
/// Bytes of disk that stay free when a model is stored.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;
/// Bytes of a catalog file.
pub const CATALOG_BYTES_MAX: u64 = 1 << 20;
/// Characters of a model's file name.
pub const MODEL_NAME_BYTES_MAX: usize = 200;
/// Tokens that a repetition penalty or DRY looks back over.
pub const SAMPLER_LAST_N_MAX: i32 = 1 << 20;
/// Samplers in one chain.
pub const SAMPLERS_MAX: usize = 64;
/// Tokens whose logit one request may bias.
pub const LOGIT_BIAS_MAX: usize = 65_536;
/// Sequence breakers of DRY.
pub const DRY_BREAKERS_MAX: usize = 256;
/// Bytes of a DRY sequence breaker that count; the rest is cut off.
pub const DRY_BREAKER_BYTES_MAX: usize = 40;
/// Tokens of a DRY sequence breaker after its first.
pub const DRY_BREAKER_TAIL_MAX: usize = 20;
/// Requests of one engine whose timelines are kept.
pub const TIMELINES_MAX: usize = 256;
/// Commands that wait for the engine thread.
pub const ENGINE_COMMANDS_MAX: usize = 256;
/// Sequences that wait for a place, where the options name no number.
pub const QUEUE_MAX: usize = 256;
/// Answers to one prompt.
pub const ANSWERS_MAX: usize = 128;
/// Sequences of one engine that run at once.
pub const PARALLEL_MAX: usize = 256;
/// Seconds that an idle model may be asked to stay, unless for ever.
pub const KEEP_ALIVE_S_MAX: u64 = 1_000_000_000;
/// Bytes of server-sent events in one chunk of a body; a single event may be longer.
pub const SSE_FRAME_BYTES_MAX: usize = 64 << 10;
/// Stop strings of a request.
pub const STOPS_MAX: usize = 64;
/// Likeliest tokens reported with each token.
pub const TOP_PROBS_MAX: usize = 100;
/// Tools that one request offers.
pub const TOOLS_MAX: usize = 128;
/// Characters of a tool's name.
pub const TOOL_NAME_BYTES_MAX: usize = 128;
/// Messages of one conversation.
pub const MESSAGES_MAX: usize = 4096;
/// Prompts of one request.
pub const PROMPTS_MAX: usize = 256;
/// Connections that are served at once, where the options name no number.
pub const HTTP_CONNECTIONS_MAX: usize = 512;
/// Connections beyond those that are told so; more are closed without a word.
pub const HTTP_REFUSALS_MAX: usize = 64;
/// Header fields of a request.
pub const HTTP_HEADERS_MAX: usize = 100;
/// Bytes of a request's line and header fields.
pub const HTTP_HEADER_BYTES_MAX: usize = 32 << 10;
/// Bytes that a connection buffers; a request line and header beyond it ends the connection.
pub const HTTP_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Bytes of an answer that the kernel holds for a slow reader.
pub const HTTP_SEND_BUFFER_BYTES: u32 = 256 << 10;
/// Milliseconds in which a header has to come, and that a kept connection may be idle.
pub const HTTP_HEADER_READ_MS: u64 = 30_000;
/// Milliseconds in which a body has to come, where the options name no number.
pub const HTTP_BODY_READ_MS: u64 = 60_000;
/// Milliseconds without a byte taken after which a reader counts as gone, where the options name
/// no number.
pub const HTTP_WRITE_STALL_MS: u64 = 30_000;
/// Milliseconds in which a refused connection hears why.
pub const HTTP_REFUSAL_MS: u64 = 1000;
/// Milliseconds for last words after the engines have stopped.
pub const HTTP_FAREWELL_MS: u64 = 2000;
/// Bytes of a request's body, where the options name no number.
pub const HTTP_BODY_BYTES_MAX: usize = 16 << 20;
/// Bytes of all bodies that are being read or answered.
pub const HTTP_BODIES_BYTES_MAX: usize = 128 << 20;
/// Bytes of a refused request's body that are read and thrown away, so that its sender hears why.
pub const HTTP_DRAIN_BYTES_MAX: usize = 32 << 20;
/// Milliseconds for that.
pub const HTTP_DRAIN_MS: u64 = 5000;
/// Bytes of a request's name that its caller chose.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// WebSockets that are open at once.
pub const SOCKETS_MAX: usize = 64;
/// Bytes of one message on a WebSocket.
pub const SOCKET_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Messages of one WebSocket that are being answered; more wait unread.
pub const SOCKET_MESSAGES_MAX: usize = 16;
/// Milliseconds between two pings; a peer that is silent for two of these is gone.
pub const SOCKET_PING_MS: u64 = 30_000;
/// Tasks that are listed.
pub const TASKS_LISTED_MAX: usize = 100;
/// Tasks of which it is known what became of their context chunks.
pub const TASKS_CONTEXTS_MAX: usize = 256;
/// Tokens of a task's context chunks, where the task names no number.
pub const CONTEXT_TOKENS_MAX: usize = 2048;
/// Context chunks of a task.
pub const CONTEXT_CHUNKS_MAX: usize = 1024;
/// Notes of callers about answers that are kept.
pub const FEEDBACK_MAX: usize = 256;
/// Bytes of one of them.
pub const FEEDBACK_BYTES_MAX: usize = 16 << 10;
/// Texts of `/ws/completions` that can be taken up again.
pub const LIVE_MAX: usize = 64;
/// Bytes of those texts beyond which finished ones are forgotten.
pub const LIVE_BYTES_MAX: usize = 8 << 20;
/// Bytes of one of them, where it ends.
pub const LIVE_TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes of text in one of their frames.
pub const LIVE_FRAME_BYTES_MAX: usize = 16 << 10;
/// Lines of the log that are kept to be shown.
pub const LOG_LINES_MAX: usize = 512;
/// Bytes of one of them; the rest is cut off.
pub const LOG_LINE_BYTES_MAX: usize = 2048;
/// Keys that a service knows.
pub const KEYS_MAX: usize = 1024;
/// Bytes of the file of keys, and of a file of keys in the clear.
pub const KEYS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of a key's name.
pub const KEY_NAME_BYTES_MAX: usize = 64;
/// Answers that the result cache keeps, where the options name no number.
pub const RESULT_CACHE_ENTRIES: usize = 100;
/// Seconds that it keeps them, where the options name no number.
pub const RESULT_CACHE_S: u64 = 3600;
/// Bytes of an answer that it keeps.
pub const RESULT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a grammar or JSON schema.
pub const GRAMMAR_BYTES_MAX: usize = 1 << 20;
/// Stack of the thread that compiles a grammar; only what is used takes memory.
pub const GRAMMAR_STACK_BYTES: usize = 256 << 20;
/// Nodes of regular expressions that compiling a grammar may make.
pub const GRAMMAR_COMPILE_FUEL: u64 = 1_000_000;
/// Symbols in the rules of a compiled grammar.
pub const GRAMMAR_SYMBOLS_MAX: usize = 200_000;
/// Ways in which a grammar may read one place of a text.
pub const GRAMMAR_ROW_ITEMS_MAX: usize = 2_000;
/// Nodes of regular expressions that one token may make.
pub const GRAMMAR_STEP_FUEL: u64 = 400_000;
/// Items that a grammar's parser may make for one token.
pub const GRAMMAR_STEP_ITEMS_MAX: usize = 200_000;
/// States of a grammar's lexer, each 1 to 2 KiB.
pub const GRAMMAR_LEXER_STATES_MAX: usize = 32_768;
/// Nodes of a GBNF grammar's network.
pub const GBNF_NODES_MAX: usize = 1 << 20;
/// Parentheses inside each other in GBNF.
pub const GBNF_NESTING_MAX: usize = 200;
/// Ways in which a GBNF grammar may read one place of a text.
pub const GBNF_CONFIGS_MAX: usize = 10_000;
/// Steps between nodes that a GBNF grammar may take for one token.
pub const GBNF_STEPS_MAX: usize = 4_000_000;
/// States that a GBNF grammar may reach for one token, each 1 KiB and its configurations.
pub const GBNF_STATES_MAX: usize = 32_768;
/// States that are kept from one token to the next.
pub const GBNF_STATES_KEPT: usize = 4_096;
/// Masks that are kept for states that come again.
pub const GBNF_MASKS_KEPT: usize = 8;
/// Triggers of a lazy grammar.
pub const TRIGGERS_MAX: usize = 64;
/// Bytes of one trigger.
pub const TRIGGER_BYTES_MAX: usize = 4 << 10;
/// Bytes at the end of a text in which triggers are looked for.
pub const TRIGGER_WINDOW_BYTES: usize = 16 << 10;
/// Steps back that a trigger's pattern may take in one search.
pub const TRIGGER_BACKTRACKS_MAX: usize = 100_000;
/// Likeliest tokens that llama.cpp's clients may ask for with each token.
pub const LLAMA_PROBS_MAX: usize = 1_024;
/// Tokens around the cursor that a fill-in-the-middle request takes; other files fill the rest.
pub const INFILL_TOKENS_MAX: usize = 2_048;
/// Candidates that the infill step compares with each other.
pub const INFILL_CANDIDATES_MAX: usize = 256;
/// Entries of the disk cache; each takes some hundred bytes of memory.
pub const PREFIX_ENTRIES_MAX: usize = 65_536;
/// Bytes of pages that wait to be written to the disk cache; a single page may be larger.
pub const PREFIX_WRITE_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of pages that were read from the disk cache and wait for the engine; a single page may be
/// larger.
pub const PREFIX_MAILBOX_BYTES: usize = 16 << 20;
/// Model files whose digest is remembered.
pub const PREFIX_DIGESTS_MAX: usize = 64;
/// Prompts of one engine whose pages wait for room in the disk cache's queue.
pub const PREFIX_STORES_MAX: usize = 64;
/// Bytes of pages that a step of the engine copies from or to the disk cache; a single page may be
/// larger.
pub const PREFIX_STEP_BYTES: usize = 8 << 20;
/// Pages whose coming again is noticed.
pub const PREFIX_SEEN_MAX: usize = 16_384;
/// Milliseconds without a page after which a prompt is computed instead of read.
pub const PREFIX_STALL_MS: u64 = 2_000;
/// Milliseconds after which no more pages of a prompt are read, however they come.
pub const PREFIX_FETCH_MS: u64 = 60_000;
/// Writes that wait for the store's thread.
pub const STORE_QUEUE_MAX: usize = 256;
/// Writes that join the transaction of the one that waited first.
pub const STORE_BATCH_MAX: usize = 63;
/// Connections for readers that stay open.
pub const STORE_READERS_KEPT: usize = 4;
/// Time that a connection waits for another process.
pub const STORE_BUSY_MS: u64 = 5000;
/// Bytes that the write-ahead log keeps after a checkpoint.
pub const STORE_WAL_BYTES_MAX: i64 = 4 << 20;
/// Pages of 4 KiB in the write-ahead log after which they go to their places.
pub const STORE_CHECKPOINT_PAGES: i64 = 512;
/// Bytes that are kept free for a start of the store on a full disk.
pub const STORE_RESERVE_BYTES: u64 = 1 << 20;
/// Backups of the store that are kept.
pub const STORE_BACKUPS_MAX: usize = 3;
/// Time between two backups of the store.
pub const STORE_BACKUP_EVERY_MS: i64 = 24 * 3600 * 1000;
/// A store that was closed cleanly and is larger than this is not checked at start.
pub const STORE_CHECK_BYTES_MAX: u64 = 64 << 20;
/// Jobs that a note about a restored backup names.
pub const STORE_LOST_NAMED_MAX: usize = 20;
/// Bytes of a line of an import.
pub const STORE_LINE_BYTES_MAX: usize = 128 << 20;
/// Machines that this one is paired with.
pub const PEERS_MAX: usize = 64;
/// How far a peer's clock may drag ours beyond what our own says: a day, and the hours of zones.
pub const SYNC_DRIFT_MS_MAX: i64 = 26 * 3600 * 1000;
/// How far ahead of this machine's clock an entry may be stamped: ten years, for a clock that was
/// never set stands at the year of the program.
pub const SYNC_AHEAD_MS_MAX: i64 = 10 * 365 * 24 * 3600 * 1000;
/// Bytes of an entry that travels between two machines.
pub const SYNC_ENTRY_BYTES_MAX: usize = 1 << 20;
/// Bytes of a message between two machines.
pub const SYNC_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of all blobs of a machine, sealed.
pub const SYNC_BLOBS_BYTES_MAX: u64 = 16 << 30;
/// Bytes of a blob, a file or a text beside the entries: with its seals it is one of those.
pub const SYNC_BLOB_BYTES_MAX: u64 = SYNC_BLOBS_BYTES_MAX - (2 << 20);
/// What blobs leave free of a disk.
pub const SYNC_DISK_FREE_MIN: u64 = 1 << 30;
/// Blobs that a message asks for.
pub const SYNC_WANTS_MAX: usize = 16;
/// Blobs that are wanted at a time; others wait until one of these has come.
pub const SYNC_WANT_FILES_MAX: usize = 1024;
/// Calls about blobs behind each other: more than a file of the largest size has pieces.
pub const SYNC_HAULS_MAX: usize = 65_536;
/// Files that are shown at a time.
pub const SYNC_FILES_SHOWN_MAX: usize = 1000;
/// What other processes have to tell a running service.
pub const SYNC_SPOOL_MAX: usize = 256;
/// Bytes of the line before the piece in a message about blobs.
pub const SYNC_BLOB_HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of the line before a frame of a file for a stick.
pub const STICK_HEAD_BYTES_MAX: u64 = 1024;
/// Entries of a message between two machines.
pub const SYNC_ENTRIES_MAX: usize = 256;
/// By how much a log may have grown between two messages.
pub const SYNC_JUMP_MAX: u64 = 1 << 32;
/// How often a log may be laid anew behind what a peer says that it has.
pub const SYNC_FORKS_MAX: u32 = 16;
/// Time after which it may be once more.
pub const SYNC_FORK_EVERY_MS: i64 = 10 * 60 * 1000;
/// Time between two notes on the disk of when a peer was heard, while it says nothing new.
pub const SYNC_HEARD_EVERY_MS: i64 = 3600 * 1000;
/// Silence of a peer after which it is told since when: more than the longest pause between calls.
pub const SYNC_QUIET_MS: i64 = 10 * 60 * 1000;
/// Levels of a body that is sent: readers of JSON stop at about twice as many.
pub const SYNC_DEPTH_MAX: usize = 64;
/// The greatest number of an entry: what JSON's readers everywhere can count.
pub const SYNC_SEQ_MAX: u64 = 1 << 53;
/// Characters of the kind of an entry.
pub const SYNC_KIND_BYTES_MAX: usize = 64;
/// Bytes of the key of an entry.
pub const SYNC_KEY_BYTES_MAX: usize = 256;
/// Entries of an outbox, for each peer.
pub const SYNC_OUTBOX_MAX: u64 = 50_000;
/// Bytes of an outbox, for each peer.
pub const SYNC_OUTBOX_BYTES_MAX: u64 = 256 << 20;
/// Entries that stay though the peer has them, should its store go back in time.
pub const SYNC_KEEP_MAX: u64 = 2_000;
/// Bytes beyond which none stays for that.
pub const SYNC_KEEP_BYTES_MAX: u64 = 32 << 20;
/// Entries of a peer that are known again: more than it can send twice.
pub const SYNC_SEEN_MAX: u64 = 2 * SYNC_OUTBOX_MAX;
/// Entries that are set aside, for each peer; the oldest go first.
pub const SYNC_HELD_MAX: u64 = 1_000;
/// Bytes that they take, for each peer.
pub const SYNC_HELD_BYTES_MAX: i64 = 16 << 20;
/// Copies of one thing that did not count.
pub const SYNC_COPIES_MAX: u64 = 8;
/// Bytes that all copies take; the oldest go first.
pub const SYNC_COPIES_BYTES_MAX: i64 = 64 << 20;
/// What records ask of other rooms, looked at together.
pub const SYNC_ACTS_MAX: usize = 64;
/// What they ask that waits; the oldest goes first.
pub const SYNC_ACTS_KEPT: i64 = 4096;
/// How long a job that was taken back waits for the process that runs it, where several share a
/// store: two weeks.
pub const SYNC_PASSED_MS_MAX: i64 = 14 * 24 * 3600 * 1000;
/// What jobs told that is not yet where peers are told from; the oldest goes first.
pub const SYNC_TOLD_MAX: i64 = 50_000;
/// Bytes that it takes.
pub const SYNC_TOLD_BYTES_MAX: i64 = 256 << 20;
/// Of it, what is handed on at a time.
pub const SYNC_TOLD_BATCH: usize = 64;
/// Bytes of that, if it is more than one.
pub const SYNC_TOLD_BATCH_BYTES: usize = 4 << 20;
/// Ids of what a process handed on that are known again: more than it can hand on twice.
pub const SYNC_TOLD_SEEN_MAX: i64 = 1024;
/// Connections of a process to a store that several share.
pub const SHARED_CONNECTIONS_MAX: usize = 8;
/// Time that a transaction waits for one of them.
pub const SHARED_WAIT_MS: u64 = 5000;
/// Time in which a server has to take a connection.
pub const SHARED_CONNECT_MS: u64 = 3000;
/// Time after which a connection whose other end says nothing is given up.
pub const SHARED_SILENCE_MS: u64 = 10_000;
/// Time for a statement of it, and for the turn to write.
pub const SHARED_STATEMENT_MS: u64 = 10_000;
/// Time for its answer: more than it gives a statement, so that its own words come first.
pub const SHARED_ANSWER_MS: u64 = 15_000;
/// First pause after a connection that failed; it doubles.
pub const SHARED_PAUSE_MS_MIN: u64 = 100;
/// Longest pause.
pub const SHARED_PAUSE_MS_MAX: u64 = 10_000;
/// Bytes of a file with a password.
pub const SHARED_PASSWORD_BYTES_MAX: u64 = 4096;
/// Things that are known by sync; what changed the longest ago goes first.
pub const SYNC_RECORDS_MAX: i64 = 200_000;
/// Bytes that they take.
pub const SYNC_RECORDS_BYTES_MAX: i64 = 2 << 30;
/// Bytes of records that are shown at a time.
pub const SYNC_SHOWN_BYTES_MAX: usize = 16 << 20;
/// Time between two calls while there is nothing to say.
pub const SYNC_IDLE_MS: u64 = 15_000;
/// Time in which a peer has to take a connection.
pub const SYNC_CONNECT_MS: u64 = 5_000;
/// Time that an exchange may take, with its messages both ways.
pub const SYNC_CALL_MS: u64 = 60_000;
/// First pause after a call that failed.
pub const SYNC_PAUSE_MS_MIN: u64 = 500;
/// Longest pause between two calls.
pub const SYNC_PAUSE_MS_MAX: u64 = 60_000;
/// Jobs that run at once.
pub const JOBS_AT_ONCE_MAX: usize = 64;
/// Jobs that wait or run.
pub const JOBS_WAITING_MAX: i64 = 10_000;
/// Jobs that somebody waits for, beyond those that fill the queue.
pub const JOBS_AWAITED_MAX: i64 = 256;
/// Bytes of all jobs.
pub const JOBS_BYTES_MAX: i64 = 64 << 30;
/// Attempts that a job may ask for.
pub const JOBS_ATTEMPTS_MAX: i64 = 100;
/// Jobs that one page of a list shows.
pub const JOBS_LISTED_MAX: i64 = 500;
/// Bytes of an answer that a job keeps.
pub const JOB_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Machines that are to hear that nobody wants one job any more.
pub const JOB_UNWANTED_MAX: i64 = 8;
/// Time between two looks at who can hear it, and first pause of one that did not take it; that
/// doubles.
pub const JOB_UNWANTED_PAUSE_MS: u64 = 1000;
/// Longest such pause.
pub const JOB_UNWANTED_PAUSE_MS_MAX: u64 = 60_000;
/// Readers that follow jobs at once.
pub const JOB_READERS_MAX: usize = 256;
/// Milliseconds between two looks at what is too old to be kept.
pub const JOBS_PURGE_EVERY_MS: i64 = 60_000;
/// The same where no job comes or goes.
pub const JOBS_PURGE_IDLE_MS: i64 = 3_600_000;
/// Seconds after the machine's start at which its clock counts, though nobody set it.
pub const CLOCK_WAIT_S: i64 = 600;
/// Callbacks of one host that are looked at together.
pub const CALLBACKS_MAX: i64 = 16;
/// Tries of one callback.
pub const CALLBACK_TRIES_MAX: i64 = 8;
/// Time that one try of a callback may take.
pub const CALLBACK_MS: u64 = 10_000;
/// Bytes of an answer to a callback that are looked at.
pub const CALLBACK_ANSWER_BYTES_MAX: usize = 4096;
/// Bytes of a file of the kernel that are read; the longest, of a machine with many cores, have
/// some tens of thousands.
pub const SYSFS_FILE_BYTES_MAX: usize = 256 << 10;
/// Entries of a folder of the kernel that are looked at.
pub const SYSFS_ENTRIES_MAX: usize = 4_096;
/// Cores whose clocks are read and set.
pub const POWER_CORES_MAX: usize = 1_024;
/// Clocks that a core or a GPU is thought to have.
pub const POWER_STEPS_MAX: usize = 256;
/// Zones, rails, coolers and devices of one kind that are read.
pub const POWER_SENSORS_MAX: usize = 256;
/// Records of the kernel's log that one reading looks at.
pub const POWER_LOG_RECORDS_MAX: usize = 65_536;
/// Settings that are written for one profile.
pub const POWER_WRITES_MAX: usize = 1_024;
/// Models whose clocks are remembered.
pub const POWER_CALIBRATIONS_MAX: usize = 32;
/// Bytes of a line between the service and the helper that sets the board.
pub const POWER_LINE_BYTES_MAX: u64 = 256;
/// How long the service waits for the helper's answer; the first one starts the helper.
pub const POWER_ANSWER_MS: u64 = 5_000;
/// Ports beside the first that one service listens on.
pub const LISTEN_PORTS_MAX: usize = 8;
/// Bytes of the journal of what was set before.
pub const POWER_JOURNAL_BYTES_MAX: u64 = 1 << 20;
/// Levels of lists and maps in a configuration in YAML.
pub const CONFIG_DEPTH_MAX: usize = 16;
/// Seconds that a service manager is asked to wait for the first answer of a model. Two gigabytes
/// from a slow card take two minutes; a start that hangs is to be ended.
pub const START_S_MAX: u64 = 900;
/// Groups of a user.
pub const GROUPS_MAX: usize = 64;
/// Links on the way to a folder, as the kernel has it.
pub const LINKS_MAX: usize = 40;
/// Files of a backup, and bytes of one.
pub const TAR_FILES_MAX: usize = 10_000;
/// See above.
pub const TAR_FILE_BYTES_MAX: u64 = 8 << 30;
/// Bytes of an update's manifest, and of the signatures of it.
pub const UPDATE_MANIFEST_BYTES_MAX: u64 = 16 << 10;
/// Bytes of a program that an update brings.
pub const UPDATE_PROGRAM_BYTES_MAX: u64 = 512 << 20;
/// Updates of one folder that are looked at.
pub const UPDATE_OFFERS_MAX: usize = 64;
/// Keys whose updates a machine takes.
pub const UPDATE_KEYS_MAX: usize = 16;
/// Bytes of the file of these keys.
pub const UPDATE_KEYS_BYTES_MAX: u64 = 16 << 10;
/// Bytes of the record of slots.
pub const UPDATE_RECORD_BYTES_MAX: u64 = 64 << 10;
/// What the disk keeps free beside a program that is written to a slot.
pub const UPDATE_FREE_BYTES_MIN: u64 = 16 << 20;
/// Starts of a new program, of which one has to hold.
pub const UPDATE_STARTS_MAX: u32 = 3;
/// Seconds that a new program has to come to a start that holds.
pub const UPDATE_TRIAL_S: u64 = 600;
/// Seconds after which a start holds: longer than `WatchdogSec=` of the unit.
pub const UPDATE_SETTLE_S: u64 = 90;
/// Lines that wait for the journal.
pub const JOURNAL_QUEUE_MAX: usize = 1024;
/// Bytes of the line that the service manager shows.
pub const NOTIFY_STATUS_BYTES_MAX: usize = 200;
/// Bytes of a message of multicast DNS.
pub const DISCOVERY_BYTES_MAX: usize = 9000;
/// Machines that one look at the network finds.
pub const DISCOVERED_MAX: usize = 256;
/// Records of one message that are read.
pub const DNS_RECORDS_MAX: usize = 64;
/// Pointers and labels of one name.
pub const DNS_JUMPS_MAX: usize = 16;
/// Bytes of a file of certificates and keys.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Seconds for which a pairing code is good.
pub const PAIR_S: u64 = 600;
/// Exchanges that may be begun with one pairing code.
pub const PAIR_TRIES_MAX: u32 = 5;
/// Silence of a stream after which its reader hears that the connection is alive.
pub const KEEP_ALIVE_MS: u64 = 15_000;
/// Codes that were typed here and are remembered, so that none is typed twice.
pub const PAIR_SPENT_MAX: usize = 64;
/// Failures in a row after which the hub ejects a backend.
pub const HUB_EJECT_FAILURES: u32 = 3;
/// First pause of an ejected backend; it doubles.
pub const HUB_PAUSE_MS: u64 = 1000;
/// Longest pause of an ejected backend, and the longest that one can say to be full.
pub const HUB_PAUSE_MS_MAX: u64 = 60_000;
/// Backends of a hub: all machines that it is paired with, and as many beside them.
pub const HUB_BACKENDS_MAX: usize = 2 * PEERS_MAX;
/// Hubs that pass a request on, one to the next; the last one answers it itself.
pub const HUB_HOPS_MAX: u32 = 2;
/// Backends that one request tries, where the options name no number.
pub const HUB_TRIES_MAX: usize = 3;
/// Bytes of the address of a peer.
pub const PEER_ADDRESS_BYTES_MAX: usize = 256;
/// Times that the hub looks for a job at an appliance in vain, one after the other.
pub const HUB_HAND_TRIES_MAX: u32 = 3;
/// Pause between two of them.
pub const HUB_HAND_PAUSE_MS: u64 = 1000;
/// Time after which a job that only waits at an appliance takes no place at the hub.
pub const HUB_HAND_WAIT_MS: u64 = 60_000;
/// Bytes of one frame of a stream that the hub passes on.
pub const HUB_FRAME_BYTES_MAX: usize = 1 << 20;
/// Frames of one stream that wait for their reader in the hub.
pub const HUB_FRAMES_MAX: usize = 16;
/// Bytes of a stream's text that the hub remembers, to take it up elsewhere.
pub const HUB_TRANSCRIPT_BYTES_MAX: usize = 4 << 20;
/// Bytes of an answer that the hub passes on whole.
pub const HUB_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Time for which the hub waits for a stream's first frame before it tells the client that there
/// is one: until then another backend can be asked without a trace.
pub const HUB_HOLD_MS: u64 = 10_000;
/// Bytes of an answer to a probe.
pub const HUB_PROBE_BYTES_MAX: usize = 4 << 20;
/// Models of a backend that are remembered.
pub const HUB_MODELS_MAX: usize = 1024;
/// Bytes of a file of keys for backends.
pub const HUB_KEY_FILE_BYTES_MAX: u64 = 64 << 10;
