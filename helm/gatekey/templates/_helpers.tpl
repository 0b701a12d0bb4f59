{{- define "gatekey.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* At most 50 characters, so that "-headless" still fits into a name. */}}
{{- define "gatekey.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gatekey.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The component keeps the pod of `helm test` out of the Services. */}}
{{- define "gatekey.selector" -}}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "gatekey.testSelector" -}}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{- define "gatekey.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gatekey.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "gatekey.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Not empty when the store is SQLite. */}}
{{- define "gatekey.sqlite" -}}
{{- if eq .Values.database.engine "sqlite" }}true{{ end }}
{{- end }}

{{- define "gatekey.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}{{ ternary 1 3 (eq .Values.database.engine "sqlite") }}{{ else }}{{ int64 .Values.replicaCount }}{{ end }}
{{- end }}

{{- define "gatekey.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{ add (int64 .Values.preStopSeconds) (int64 .Values.config.drainSeconds) 15 }}
{{- else -}}
{{ int64 .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* Where a port listens; call with (list $ port). */}}
{{- define "gatekey.listen" -}}
{{- $host := (index . 0).Values.listenHost }}
{{- if contains ":" $host }}{{ printf "[%s]:%d" $host (int64 (index . 1)) }}{{ else }}{{ printf "%s:%d" $host (int64 (index . 1)) }}{{ end }}
{{- end }}

{{/*
Memory in MiB: 128 for the process, its connections and its database pool (23 when idle); 320 bytes
a key in memory; 19 MiB for each Argon2 that may run at once, counted as one a core (it is one fewer).
*/}}
{{- define "gatekey.memory" -}}
{{- $keys := div (add (mul (int64 .Values.config.cacheKeys) 320) 1048575) 1048576 }}
{{- add 128 $keys (mul (int64 .Values.cores) 19) }}
{{- end }}

{{- define "gatekey.resources" -}}
{{- if .Values.resources }}
{{- toYaml .Values.resources }}
{{- else -}}
requests:
  cpu: {{ .Values.cpuRequest }}
  memory: {{ include "gatekey.memory" . }}Mi
limits:
  cpu: {{ int64 .Values.cores }}
  memory: {{ include "gatekey.memory" . }}Mi
{{- end }}
{{- end }}

{{- define "gatekey.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "gatekey.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "gatekey.adminTokenSecret" -}}
{{- default (include "gatekey.fullname" .) .Values.adminToken.existingSecret }}
{{- end }}

{{- define "gatekey.adminTokenKey" -}}
{{- if .Values.adminToken.existingSecret }}{{ .Values.adminToken.key }}{{ else }}admin-token{{ end }}
{{- end }}

{{- define "gatekey.pepperSecret" -}}
{{- default (include "gatekey.fullname" .) .Values.pepper.existingSecret }}
{{- end }}

{{- define "gatekey.pepperKey" -}}
{{- if .Values.pepper.existingSecret }}{{ .Values.pepper.key }}{{ else }}pepper{{ end }}
{{- end }}

{{- define "gatekey.tlsSecret" -}}
{{- default (printf "%s-tls" (include "gatekey.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{/* What of the store a container needs to know. */}}
{{- define "gatekey.databaseEnv" -}}
- name: GATEKEY_DATABASE_URL
{{- if include "gatekey.sqlite" . }}
  value: sqlite:///var/lib/gatekey/gatekey.db
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.key }}
{{- end }}
- name: GATEKEY_LOG
  value: {{ .Values.config.log | quote }}
- name: GATEKEY_LOG_FORMAT
  value: {{ .Values.config.logFormat | quote }}
{{- end }}

{{- define "gatekey.databaseMounts" -}}
{{- if include "gatekey.sqlite" . }}
- name: data
  mountPath: /var/lib/gatekey
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
