// Samples of the microphone, in packets of a tenth of a second of 16 bits.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.packet = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.port.onmessage = () => { this.send(); this.port.postMessage(null); };
  }

  send() {
    if (this.filled) this.port.postMessage(this.packet.slice(0, this.filled));
    this.filled = 0;
  }

  process([channels]) {
    for (const sample of channels[0] ?? []) {
      this.packet[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled === this.packet.length) this.send();
    }
    return true;
  }
}
registerProcessor('capture', Capture);
