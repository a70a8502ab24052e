'use strict';
// The live page: sound to the server, what each model makes of it to the columns.

const $ = id => document.getElementById(id);
const KINDS = {attention: 'attention', convolution: 'convolutions', subsampling: 'frames that wait', frontend: 'front end', rescoring: 'rescoring', container: 'of the ONNX container'};
const LEVELS = 20;         // of loudness, in a second
const wait = ms => new Promise(done => setTimeout(done, ms));
const kilobytes = n => n < 1024 * 1024 ? `${(n / 1024).toFixed(1)} KB` : `${(n / 1024 / 1024).toFixed(1)} MB`;
const median = values => values.length ? values.toSorted((a, b) => a - b)[values.length >> 1] : null;

let token = new URLSearchParams(location.hash.slice(1)).get('token') ?? '';
let columns = new Map();   // name of a model -> Column
let session = null;        // the recording under way, or the last one
let template = null;       // of the picture, fetched while the server is there
let asking = false;

function say(state, text) {
  $('status').dataset.state = state;
  if ($('status').lastElementChild.textContent !== text) $('status').lastElementChild.textContent = text;
}

// ---- one model ----

class Column {
  constructor(model) {
    this.model = model;
    this.root = $('card').content.cloneNode(true).firstElementChild;
    this.root.dataset.model = model.name;
    this.part = name => this.root.querySelector(`.${name}`);
    this.root.querySelector('h2').textContent = model.name;
    const context = model.attention === 'linear' || model.left_context < 0 ? 'all the past' : `${model.left_context} frames back`;
    const facts = [model.attention, `${model.rate / 1000} kHz`, `${Math.round(1000 * model.chunk_seconds)} ms chunks`, context];
    this.part('facts').append(...facts.map(fact => Object.assign(document.createElement('span'), {textContent: fact})));
    this.part('text').setAttribute('aria-live', columns.size ? 'off' : 'polite');  // one voice is enough
    this.part('budget').textContent = `${Math.round(model.budget / 1024 / 1024).toLocaleString('en')} MB`;
    this.part('streams').textContent = model.max_streams.toLocaleString('en');
    this.part('streams').title = `each holds at most ${kilobytes(model.stream_bytes)}`;
    this.clear();
  }

  clear() {
    this.words = [];
    this.chunks = [];
    this.text = '';
    this.bytes = {};
    this.ended = false;
    this.part('text').replaceChildren();
    this.part('bar').replaceChildren();
    this.part('pulse').replaceChildren();
    for (const name of ['bytes', 'ms', 'delay']) this.part(name).textContent = '–';
    this.root.classList.remove('failed');
  }

  fail(message) {
    this.ended = true;
    this.root.classList.add('failed');
    this.part('text').textContent = message;
  }

  hear(result, clock) {
    const old = this.words;
    this.words = old.slice(0, result.keep).concat(result.words.map((word, i) => {
      const before = old[result.keep + i];
      return {...word, appeared: before?.text === word.text ? before.appeared : clock};
    }));
    this.ended = result.is_final;
    this.text = result.text ?? this.words.map(word => word.text).join(' ');
    this.bytes = Object.fromEntries(Object.entries(result.bytes).filter(([kind]) => kind !== 'positions'));
    this.chunks.push({at: result.heard, ms: result.ms / result.batch, bytes: this.bytes});
    this.write(result.keep);
    this.measure();
  }

  write(keep) {
    const line = this.part('text');
    while (line.children.length > keep) line.lastElementChild.remove();
    for (const word of this.words.slice(keep)) {
      const span = document.createElement('span');
      span.textContent = word.text + ' ';
      span.style.setProperty('--sure', word.confidence);
      span.title = `${word.start.toFixed(2)} to ${word.end.toFixed(2)} s, confidence ${word.confidence.toFixed(2)}`;
      line.append(span);
    }
    line.scrollTop = line.scrollHeight;
  }

  get total() {
    return Object.values(this.bytes).reduce((sum, n) => sum + n, 0);
  }

  get delays() {
    return this.words.filter(word => word.appeared !== null).map(word => word.appeared - word.end);
  }

  measure() {
    this.part('bytes').textContent = kilobytes(this.total);
    const last = this.chunks.slice(-20);
    this.part('ms').textContent = `${median(last.map(chunk => chunk.ms)).toFixed(1)} ms`;
    const delay = median(this.delays);
    this.part('delay').textContent = delay === null ? '–' : `${delay.toFixed(2)} s`;
    const most = Math.max(...last.map(chunk => chunk.ms));
    this.part('pulse').replaceChildren(...last.map((chunk, i) => {
      const bar = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
      const height = 22 * chunk.ms / most + 1;
      for (const [key, value] of Object.entries({x: 4 * (i + 20 - last.length), y: 24 - height, width: 3, height})) bar.setAttribute(key, value);
      return bar;
    }));
  }

  draw(scale) {
    const bar = this.part('bar'), shown = Object.entries(this.bytes).filter(([, n]) => n);
    bar.setAttribute('aria-label', shown.map(([kind, n]) => `${KINDS[kind] ?? kind} ${kilobytes(n)}`).join(', ') || 'No state yet');
    for (const [kind, n] of shown) {
      let piece = bar.querySelector(`[data-kind=${kind}]`);
      if (!piece) bar.append(piece = Object.assign(document.createElement('i'), {className: kind}));
      piece.dataset.kind = kind;
      piece.dataset.bytes = n;
      piece.title = `${KINDS[kind] ?? kind}: ${kilobytes(n)}`;
      piece.style.width = `${100 * n / scale}%`;
    }
  }
}

function draw() {
  const scale = Math.max(1, ...[...columns.values()].flatMap(column => [column.total, column.most ?? 0]));
  for (const column of columns.values()) column.draw(scale);
}

// ---- the server ----

async function look() {
  if (asking || session?.open) return;
  asking = true;
  try {
    const headers = token ? {Authorization: `Bearer ${token}`} : {};
    const answer = await fetch('models', {headers, cache: 'no-store'});
    const told = await answer.json();
    if (answer.status === 401) {
      $('door').hidden = false;
      say('bad', token ? 'This token is wrong' : 'This server asks for a token');
      return;
    }
    if (!answer.ok) throw new Error(told.message);
    $('door').hidden = true;
    show(told.models);
    template ??= await (await fetch('picture')).text();
    if (['busy', 'gone'].includes($('status').dataset.state) || !$('door').hidden) say('ready', 'Ready');
    enable();
  } catch (error) {
    say('gone', 'The server is gone, trying again …');
    enable(false);
  } finally {
    asking = false;
  }
}

function show(models) {
  if (models.map(model => model.name).join('\n') === [...columns.keys()].join('\n')) return;
  columns = new Map();
  $('models').replaceChildren();
  for (const model of models) {
    const column = new Column(model);
    columns.set(model.name, column);
    $('models').append(column.root);
  }
}

function enable(on = true) {
  for (const id of ['microphone', 'choose', 'sample']) $(id).disabled = !on;
  const busy = Boolean(session?.open);
  $('choose').disabled ||= busy;
  $('sample').disabled ||= busy;
  $('pace').disabled = busy;
  $('microphone').classList.toggle('stop', busy);
  $('microphone').lastElementChild.textContent = busy ? 'Stop' : 'Microphone';
  $('save').disabled = busy || !template || ![...columns.values()].some(column => column.chunks.length);
}

// ---- one recording ----

class Session {
  constructor(title, rate, realTime) {
    Object.assign(this, {title, rate, realTime, samples: 0, levels: [], open: true, stopped: false, ready: false});
    this.sentAt = performance.now();
    for (const column of columns.values()) column.clear();
    draw();
    const url = new URL('stream', location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    url.hash = '';
    if (token) url.searchParams.set('token', token);
    this.socket = new WebSocket(url);
    this.socket.binaryType = 'arraybuffer';
    this.started = new Promise((yes, no) => { this.yes = yes; this.no = no; });
    this.started.catch(() => {});
    this.socket.onopen = () => this.socket.send(JSON.stringify({type: 'start', rate}));
    this.socket.onmessage = event => this.hear(JSON.parse(event.data));
    this.socket.onclose = event => this.close(event);
  }

  get seconds() {
    return this.samples / this.rate;
  }

  get clock() {  // seconds of sound that there are now; none where it does not come in real time
    return this.realTime ? this.seconds + (performance.now() - this.sentAt) / 1000 : null;
  }

  send(packet) {
    if (!this.open || this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(packet);
    this.samples += packet.length;
    this.sentAt = performance.now();
    for (let start = 0; start < packet.length; start += this.rate / LEVELS) {
      const loudest = packet.slice(start, start + this.rate / LEVELS).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      this.levels.push(Math.round(1000 * loudest / 32768) / 1000);
    }
    $('time').textContent = `${this.seconds.toFixed(1)} s`;
    paint(this.levels);
  }

  finish() {
    if (!this.open || this.stopped) return;
    this.stopped = true;
    this.release();
    if (this.socket.readyState === WebSocket.OPEN) {
      say('busy', 'Finishing …');
      this.socket.send(JSON.stringify({type: 'finish'}));
    } else {
      this.socket.close();
    }
  }

  release() {  // what the sound came from
    this.onstop?.();
    this.onstop = null;
  }

  hear(message) {
    if (message.type === 'started') this.yes();
    if (message.type === 'error') this.refusal = message;
    const column = columns.get(message.model);
    if (message.type === 'failed') column.fail(message.message);
    if (message.type === 'result') {
      column.hear(message, this.clock);
      column.most = Math.max(column.most ?? 0, column.total);
      draw();
    }
  }

  close(event) {
    this.open = false;
    this.no(new Error('closed'));
    this.release();
    const reason = this.refusal?.reason;
    if (reason === 'budget_full') say('bad', `No room: ${this.refusal.message}`);
    else if (reason) say('bad', this.refusal.message);
    else if (event.code === 1001) say('gone', 'The server has stopped, trying again …');
    else if (event.code !== 1000) say('gone', 'The server is gone, trying again …');
    else say('ready', 'Done');
    enable();
    if (event.code === 1006) look();
  }
}

async function listen() {
  if (!navigator.mediaDevices) {
    say('bad', 'The microphone needs https, or this page on localhost');
    return;
  }
  say('busy', 'Asking for the microphone …');
  let stream;
  try {
    const audio = {channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    stream = await navigator.mediaDevices.getUserMedia({audio});
  } catch (error) {
    say('bad', error.name === 'NotFoundError' ? 'There is no microphone' : 'No permission for the microphone: allow it beside the address');
    return;
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule('static/capture.js');
  const own = session = new Session(`Microphone, ${new Date().toLocaleString()}`, context.sampleRate, true);
  enable();
  own.onstop = () => { stream.getTracks().forEach(track => track.stop()); context.close(); };
  try {
    await own.started;
  } catch {
    return;
  }
  const capture = new AudioWorkletNode(context, 'capture');
  const flushed = new Promise(done => {
    capture.port.onmessage = event => event.data ? own.send(event.data) : done();
  });
  own.flush = async () => { capture.port.postMessage(null); await flushed; };
  context.createMediaStreamSource(stream).connect(capture).connect(context.destination);
  say('listening', 'Listening');
}

async function read(name, bytes) {
  say('busy', 'Reading the recording …');
  const rate = Math.max(...[...columns.values()].map(column => column.model.rate), 8000);
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    say('bad', `${name} is no recording that this browser can read`);
    return;
  }
  const samples = new Int16Array(sound.length);
  const channels = Array.from({length: sound.numberOfChannels}, (_, i) => sound.getChannelData(i));
  for (let i = 0; i < samples.length; i++) {
    const sum = channels.reduce((total, channel) => total + channel[i], 0);
    samples[i] = Math.max(-32768, Math.min(32767, Math.round(32768 * sum / channels.length)));
  }
  const own = session = new Session(name, rate, $('pace').checked);
  enable();
  try {
    await own.started;
  } catch {
    return;
  }
  say('listening', `Playing ${name}`);
  const packet = Math.round(rate / 10), began = performance.now();
  for (let start = 0; start < samples.length && own.open && !own.stopped; start += packet) {
    const due = began + 1000 * (start + packet) / rate;
    if (own.realTime) await wait(Math.max(0, due - performance.now()));
    else while (own.open && own.socket.bufferedAmount > 1e5) await wait(10);
    if (!own.stopped) own.send(samples.subarray(start, start + packet));
  }
  own.finish();
}

// ---- what is seen of the sound, and its picture ----

function paint(levels) {
  const canvas = $('wave'), ratio = devicePixelRatio || 1;
  const width = canvas.width = canvas.clientWidth * ratio, height = canvas.height = canvas.clientHeight * ratio;
  const brush = canvas.getContext('2d'), step = 5 * ratio, shown = levels.slice(-Math.floor(width / step));
  brush.fillStyle = getComputedStyle(canvas).color;
  shown.forEach((level, i) => {
    const size = Math.max(2 * ratio, Math.sqrt(level) * height);
    brush.beginPath();
    brush.roundRect(i * step, (height - size) / 2, step - 2 * ratio, size, ratio);
    brush.fill();
  });
}

function recording() {
  const models = [...columns.values()].map(column => ({
    ...column.model, text: column.text, words: column.words, chunks: column.chunks,
  }));
  return {title: session.title, seconds: session.seconds, levels: session.levels, models};
}

function picture() {
  const json = JSON.stringify(recording()).replaceAll('<', '\\u003c');
  return template.replace('id="recording">null<', () => `id="recording">${json}<`);
}

function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([picture()], {type: 'text/html'}));
  link.download = `${session.title.replace(/[^\w.-]+/g, '_')}.html`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---- keys, buttons, files ----

$('microphone').onclick = async () => {
  if (!session?.open) return listen();
  await session.flush?.();
  session.finish();
};
$('choose').onclick = () => $('file').click();
$('file').onchange = async () => {
  const [file] = $('file').files;
  $('file').value = '';
  if (file) read(file.name, await file.arrayBuffer());
};
$('sample').onclick = async () => {
  try {
    read('Five digits', await (await fetch('sample')).arrayBuffer());
  } catch {
    look();
  }
};
$('save').onclick = save;
$('door').onsubmit = event => {
  event.preventDefault();
  token = $('token').value;
  look();
};
const keys = {m: 'microphone', f: 'choose', d: 'sample', s: 'save'};
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.('[type=password]')) return;
  if (keys[event.key] && !$(keys[event.key]).disabled) $(keys[event.key]).click();
});
for (const name of ['dragenter', 'dragover']) {
  addEventListener(name, event => { event.preventDefault(); $('drop').hidden = $('choose').disabled; });
}
addEventListener('dragleave', event => { if (!event.relatedTarget) $('drop').hidden = true; });
addEventListener('drop', async event => {
  event.preventDefault();
  $('drop').hidden = true;
  const [file] = event.dataTransfer.files;
  if (file && !$('choose').disabled) read(file.name, await file.arrayBuffer());
});
const repaint = () => paint(session?.levels ?? []);
addEventListener('resize', repaint);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
for (const kind of ['attention', 'convolution', 'subsampling', 'frontend']) {
  const item = document.createElement('li');
  item.append(Object.assign(document.createElement('i'), {className: kind}), KINDS[kind]);
  $('legend').append(item);
}
addEventListener('unhandledrejection', event => say('bad', `This page failed: ${event.reason}`));
look();
setInterval(look, 3000);
